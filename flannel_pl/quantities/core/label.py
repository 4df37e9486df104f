"""Which run a recording is of."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunLabel:
    """Which run a recording is of, and what its file says about that."""

    run: int = 0
    seed: int | None = None
    """None if whoever trains does not say."""

    swept: dict[str, Any] = field(default_factory=dict)
    key_prefix: str = ""
    """Goes before every key of the file."""

    attempt: int = 1
    """Counted from 1; each start of the run is one. The journal knows of earlier ones, too."""

    device: str | None = None
    """What to call the device; None = what torch calls it in this process."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Further facts for the file, e.g. `config` and `provenance`; anything JSON can hold."""

    mix_environments: bool = False
    """Whether to go on with rows that were made where something that can change bits was different."""
