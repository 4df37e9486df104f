"""metrics.csv of a run: complete also if the run was interrupted and went on, as if nothing had happened.

Lightning's CSVLogger begins its file anew whenever training starts. Here every checkpoint says how many rows
there were, and a run that goes on from it keeps just those.
"""

import csv
import sys
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from typing_extensions import override

from flannel_pl.errors import RunError
from flannel_pl.paths import RunPaths
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.held import check_held

CHECKPOINT_KEY = "flannel_metrics"
"""Where a checkpoint has what is to be known of metrics.csv."""

_MAX_LINE_BYTES = 2**20


class MetricsLog(CSVLogger):
    """Lightning's CSVLogger, which can also go on with the file that it finds.

    Args:
        save_dir: Where `metrics.csv` and `hparams.yaml` are written.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")
        self.num_rows = 0
        """Rows logged so far, those of earlier attempts included."""

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Adds one row."""
        super().log_metrics(metrics, step)
        self.num_rows += 1

    @override
    def save(self) -> None:
        """Brings the rows logged so far to the file, unless another process has taken over the run's lock.

        Raises:
            RunError: If the disk fails.
        """
        try:
            check_held(self._path, look=False)
        except RunError:
            return  # the recorder ends the run for that; an error here would keep Lightning from tidying up
        with explained(self._path, need_bytes=0):
            super().save()

    @property
    def _path(self) -> Path:
        return RunPaths(Path(self.log_dir)).metrics

    @property
    def _kept(self) -> Path:
        return RunPaths(Path(self.log_dir)).kept_metrics

    def prepare(self, *, going_on: bool) -> None:
        """Has to be called before training starts, when CSVLogger deletes the file that it finds.

        Args:
            going_on: Whether `go_on` will want what an earlier attempt has logged.

        Raises:
            RunError: If the disk fails, or if another process has taken over the run's lock.
        """
        check_held(self._path)
        with explained(self._path, need_bytes=0):
            if not going_on:
                self._kept.unlink(missing_ok=True)
            elif self._path.exists():  # if not, the last attempt was killed before its `go_on`
                self._path.replace(self._kept)

    def go_on(self, num_rows: int) -> None:
        """Takes over the first rows of an earlier attempt and drops its others; before anything is logged.

        Rows that never reached the disk, for example in a power cut, are lost: that is noted on stderr.

        Args:
            num_rows: How many rows to keep.

        Raises:
            RunError: If the disk fails.
        """
        writer: Any = self.experiment
        with explained(self._path, need_bytes=0):
            if self._kept.exists():
                writer.metrics_keys, self.num_rows = _cut(self._kept, num_rows)
                self._kept.replace(self._path)
        if self.num_rows < num_rows:
            print(
                f"flannel-pl: {self._path} has {self.num_rows} of the {num_rows} rows before the checkpoint; "
                "the others are lost",
                file=sys.stderr,
            )


class MetricsKeeper(Callback):
    """Notes in every checkpoint where metrics.csv is, and lets it go on from there.

    A checkpoint is made before Lightning logs the step that it follows, so the row of that step, if there is
    to be one, goes into the checkpoint too.

    Args:
        log: The run's logger.
    """

    def __init__(self, log: MetricsLog) -> None:
        self._log = log

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Brings all rows to the file and their number into the checkpoint."""
        self._log.save()
        state: dict[str, Any] = {"num_rows": self._log.num_rows}
        every_n_steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every_n_steps and trainer.global_step % every_n_steps == 0:
            metrics = {name: _scalar(value) for name, value in trainer.logged_metrics.items()}
            state["next_row"] = {"epoch": trainer.current_epoch, **metrics}
        checkpoint[CHECKPOINT_KEY] = state

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with the rows that were there when the checkpoint was made."""
        state = checkpoint.get(CHECKPOINT_KEY, {"num_rows": 0})  # none if another logger was in use
        self._log.go_on(state["num_rows"])
        if "next_row" in state:
            # Lightning numbers steps from 0.
            self._log.log_metrics(state["next_row"], step=checkpoint["global_step"] - 1)
            self._log.save()


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _cut(path: Path, num_rows: int) -> tuple[list[str], int]:
    """Cuts a CSV file after its header and `num_rows` rows, or before the first torn line.

    Returns:
        The names of its columns, and how many rows it has now.
    """
    with path.open("rb+") as file:
        header = _line(file)
        end_byte, found = len(header), 0
        while header and found < num_rows and (line := _line(file)):
            end_byte, found = end_byte + len(line), found + 1
        file.truncate(end_byte)
    names = next(csv.reader([header.decode(errors="replace")]), [])
    return names, found


def _line(file: BinaryIO) -> bytes:
    """Returns the next line of a file; nothing if that is torn, or no line of metrics at all."""
    line = file.readline(_MAX_LINE_BYTES)
    return line if line.endswith(b"\n") else b""
