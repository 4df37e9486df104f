"""The sizes that are measured: the notebook's, or so small that a test of the benchmark takes seconds."""

from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "flannel3.yaml"


@dataclass(frozen=True)
class Size:
    """What of the notebook's model and data can be changed."""

    hidden_dim: int = 64
    max_seq_len: int = 128
    batch_size: int = 32

    @property
    def arguments(self) -> list[str]:
        """The size as arguments of `flannel-pl fit`."""
        return [
            *("--model.hidden_dim", str(self.hidden_dim), "--model.max_seq_len", str(self.max_seq_len)),
            *("--data.batch_size", str(self.batch_size)),
        ]


SIZES = {"notebook": Size(), "small": Size(hidden_dim=16, max_seq_len=16, batch_size=4)}
