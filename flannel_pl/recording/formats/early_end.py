"""A run that ended on purpose before its last step: how many there were to be, and why there are fewer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_REASON_CHARS = 300


@dataclass(frozen=True)
class EarlyEnd:
    """How a run ended that was not to go on."""

    step: int
    """The last one."""

    planned_steps: int | None
    """How many there were to be; None if nobody knew."""

    reason: str
    """What ended it, e.g. max_epochs 3."""

    def __str__(self) -> str:
        """Returns it in words."""
        if self.planned_steps is None:
            return f"ended at step {self.step} ({self.reason}), of a number that was not known before"
        return f"ended early at step {self.step} of {self.planned_steps} ({self.reason})"

    @property
    def said(self) -> dict[str, Any]:
        """What stands under `ended` in the metadata of the run."""
        return asdict(self)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "EarlyEnd | None":
        """Returns what the metadata of a run say, checked where they were read; None if it was not early."""
        return cls(**metadata["ended"]) if metadata.get("ended") else None
