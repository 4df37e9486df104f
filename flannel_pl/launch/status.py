"""How far an experiment is, read from its folder alone: the same from every terminal and host."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flannel_pl.config import Config
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths, Run, RunPaths
from flannel_pl.launch.signs import silence_s
from flannel_pl.launch.standing import ExperimentStatus, RunStatus
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.gathering.gathered import gathered_early_ends, gathered_runs, has_recording
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.terminal import make_console

SILENT_S = 60.0
"""A run that says it is running, or a launcher, is not believed after so long without a sign of life."""


def read_status(folder: Path) -> ExperimentStatus:
    """Reads how far the experiment in `folder` is; changes nothing there.

    Raises:
        UserError: If the folder holds no experiment.
        RunError: If its `experiment.json` cannot be read.
    """
    paths = ExperimentPaths.find(folder.absolute())
    record = read_record(paths)
    return collect_status(paths, record.settings, record.runs)


def collect_status(paths: ExperimentPaths, config: Config, runs: Sequence[Run]) -> ExperimentStatus:
    """Reads how far some runs of an experiment are.

    Args:
        paths: Of the experiment.
        config: Its config, as `ResolvedExperiment.config`.
        runs: Which runs.
    """
    # In this order: a run that ends, or is gathered, between two looks is done, not gone.
    told = [_told(paths.run(run.index), config, run) for run in runs]
    shard_bytes = [_size(paths.run(run.index).recording) for run in runs]
    gathered = _Gathered.read(paths) if None in shard_bytes else _Gathered()
    return ExperimentStatus(
        name=paths.name,
        folder=paths.folder,
        runs=tuple(
            _settled(
                paths.run(run.index),
                status,
                waiting_run(config, run),
                num_bytes,
                gathered,
                every_n_steps=config.recorder.every_n_steps,
            )
            for status, run, num_bytes in zip(told, runs, shard_bytes, strict=True)
        ),
        gather=config.experiment.gather,
        gathered=has_recording(paths),
        launching=_is_beating(paths.lock),
    )


def waiting_run(config: Config, run: Run) -> RunStatus:
    """Returns the status of a run that was never started."""
    max_steps = run.swept.get("trainer.max_steps", config.trainer.max_steps)
    num_rows = 1 + max_steps // config.recorder.every_n_steps
    return RunStatus(run.index, run.seed, run.swept, max_steps, num_rows)


@dataclass(frozen=True)
class _Gathered:
    """What is in the gathered file, finished or growing."""

    runs: frozenset[int] = frozenset()
    trouble: str = ""
    """Why that is not known."""

    early_ends: Mapping[int, EarlyEnd] = field(default_factory=dict)
    """Those of its runs that ended early, as far as the finished file says."""

    @classmethod
    def read(cls, paths: ExperimentPaths) -> "_Gathered":
        if not (paths.growing.exists() or paths.gathered.exists()):
            return cls()
        try:
            return cls(gathered_runs(paths.folder), early_ends=gathered_early_ends(paths))
        except (UserError, RunError) as error:
            return cls(trouble=str(error))


def _told(paths: RunPaths, config: Config, run: Run) -> RunStatus:
    """Returns what a run's journal says of it."""
    status = waiting_run(config, run)
    try:
        entry = Journal(paths.journal).read()
        every_n_steps = config.recorder.every_n_steps
        if entry is None:
            return status
        silent = entry.state == "running" and silence_s(paths.journal, entry.updated_s) > SILENT_S
        status = _with_entry(status, entry, every_n_steps=every_n_steps)
        return replace(status, state="silent") if silent else status
    except (RunError, OSError, ValueError, TypeError, KeyError) as error:
        return replace(status, state="unknown", message=f"its journal cannot be read: {error}")


def _settled(
    paths: RunPaths,
    status: RunStatus,
    waiting: RunStatus,
    shard_bytes: int | None,
    gathered: _Gathered,
    *,
    every_n_steps: int,
) -> RunStatus:
    """Returns a run's status by its files: they are the truth, whatever the journal says.

    Args:
        paths: The run's files.
        status: What the journal says.
        waiting: The status of that run if it were never started.
        shard_bytes: Size of the run's finished recording; None if it has none.
        gathered: What is in the gathered file.
        every_n_steps: Steps from row to row.
    """
    if shard_bytes is not None or status.run in gathered.runs:
        ended = status.ended
        if status.state != "done":  # the journal has not heard of it
            ended = (
                gathered.early_ends.get(status.run) if shard_bytes is None else _early_end(paths.recording)
            )
        done = replace(status, state="done", message="", ended=ended)
        if ended is not None:
            num_rows = 1 + ended.step // every_n_steps
            return replace(done, step=ended.step, num_rows=num_rows, rows_written=num_rows)
        return replace(
            done,
            step=status.max_steps,
            rows_written=status.num_rows,
            bytes_written=status.bytes_written if shard_bytes is None else shard_bytes,
        )
    if status.state != "done":
        return status
    if gathered.trouble:
        return replace(status, state="unknown", message=f"it was done; where it is now: {gathered.trouble}")
    return replace(waiting, message="it was done, but its recording is gone")


def _early_end(recording: Path) -> EarlyEnd | None:
    """Returns what a finished recording says of an early end."""
    # Here, not at the top: it is seldom needed, and imports numpy.
    from flannel_pl.recording.formats.files import read_header

    try:
        return EarlyEnd.of(read_header(recording).flannel)
    except RunError:  # damaged, which `verify` tells
        return None


def _size(path: Path) -> int | None:
    """Returns the size of a file in bytes; None if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _with_entry(status: RunStatus, entry: JournalEntry, *, every_n_steps: int) -> RunStatus:
    ended = None
    if entry.state == "done" and entry.ended_step is not None:
        ended = EarlyEnd(entry.ended_step, status.max_steps, entry.message)
    return replace(
        status,
        state=entry.state,
        attempt=entry.attempt,
        step=max(0, entry.rows_written - 1) * every_n_steps,
        ended=ended,
        rows_written=entry.rows_written,
        device=entry.device,
        host=entry.host,
        steps_per_s=_steps_per_s(entry, every_n_steps),
        loss=entry.loss,
        first_bad_step=entry.first_bad_step,
        live=entry.live,
        bytes_written=entry.bytes_written,
        updated_s=entry.updated_s,
        message=entry.message,
    )


def _steps_per_s(entry: JournalEntry, every_n_steps: int) -> float | None:
    # Row 0 takes no step. Rows before `first_row` were kept from an earlier attempt.
    num_rows = entry.rows_written - max(1, entry.first_row)
    elapsed_s = entry.updated_s - entry.started_s
    return num_rows * every_n_steps / elapsed_s if num_rows > 0 and elapsed_s > 0 else None


def _is_beating(lock: Path) -> bool:
    """Whether the holder of a lock file has touched it lately."""
    try:
        return silence_s(lock, lock.stat().st_mtime) < SILENT_S
    except OSError:
        return False


def status_verb(folder: Path, watch: bool = False, interval_s: float = 2.0) -> None:
    """Shows how far an experiment is, from any terminal or host that sees its folder.

    Args:
        folder: The experiment's folder, e.g. runs/flannel3.
        watch: Goes on showing it until every run is done or failed, or until Ctrl-C.
        interval_s: Seconds between two looks at the folder while watching.
    """
    # Here, not at the top: who only reads a status draws nothing.
    from rich.live import Live

    from flannel_pl.launch.display import PlainLines, live_table, status_table

    if not (math.isfinite(interval_s) and interval_s > 0):
        raise UserError(f"interval_s is {interval_s}, expected seconds, more than 0; leave it out for 2")
    console = make_console()
    if not watch:
        console.print(status_table(read_status(folder), width=console.width))
        return
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_interactive:
            _watch(folder, interval_s, PlainLines(console).show)
            return
        with Live(console=console, auto_refresh=False) as live:
            _watch(folder, interval_s, lambda status: live.update(live_table(status, console), refresh=True))


def _watch(folder: Path, interval_s: float, show: Callable[[ExperimentStatus], object]) -> None:
    status = read_status(folder)
    show(status)
    while not status.ended:
        time.sleep(interval_s)
        status = read_status(folder)
        show(status)
