"""What happened to which run when: `events.jsonl` of an experiment, one JSON object per line.

Every event has `time` (UTC, ISO 8601, milliseconds), `monotonic_s` (a clock that nobody sets, for durations
within one launch) and `event`. Whoever launches runs writes, with these further fields:

| event | fields |
|---|---|
| `launch_started` | runs (their numbers), slots (their names), command |
| `submitted` | launcher, tasks (run -> its job), gather (its job), settings, submitted_s: as in jobs.json |
| `run_started` | run, seed, device, attempt (from 1), pid |
| `training_started` | run, attempt, pid, first_row, environment: from which row on the run is trained where |
| `ended_early` | run, step, planned_steps, reason: the run has ended on purpose before its last step |
| `live_metrics_failed` | run, step, cause: live metrics end there, training goes on |
| `run_finished` | run, device, attempt, seconds |
| `run_failed` | run, seed, device, attempt, cause; log and will_retry if a launcher started it |
| `fewer_at_once` | runs: how many are trained side by side from now on, since one was killed |
| `run_stopped` | run, seed, device, attempt, cause: the signal that asked a single run to stop |
| `gather_started` | -: the first run is about to be copied, while others train or after all of them |
| `run_gathered` | run: it is safe in the gathered file, while others train |
| `gather_failed` | cause: nothing is copied any more until all runs are done, when it is tried again |
| `gather_finished` | -: the experiment's recording is there |
| `stopping` | signal, e.g. SIGTERM |
| `launch_ended` | error: null, or what ended it before its end |

A launch that was killed has no `launch_ended`; the next one appends to the same file.
"""

import datetime
import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flannel_pl.errors import Interrupted, RunError
from flannel_pl.experiment import Run, Slot
from flannel_pl.recording.writing.disk import disk_error
from flannel_pl.small_files import open_regular

_log = logging.getLogger(__name__)


class EventLog:
    """Appends events to the file at `path`; holds nothing open.

    A disk that refuses an event costs that event, never the training: it is warned of once.

    Args:
        path: `ExperimentPaths.events`. The folder must exist when the first event is written.

    Example:
        >>> EventLog(paths.events).write("run_started", run=3, seed=45)  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False
        self._at_line_start = False  # as far as is known

    @contextmanager
    def launch(self, **fields: Any) -> Iterator[None]:
        """Notes when a launch begins and how it ends.

        Args:
            fields: What there is to say at the beginning.
        """
        self.write("launch_started", **fields)
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.write("launch_ended", error=None if error is None else str(error) or type(error).__name__)

    @contextmanager
    def run(self, run: Run, slot: Slot, *, attempt: int) -> Iterator[None]:
        """Notes when a run of this process begins and how it ends.

        Args:
            run: Which.
            slot: Where.
            attempt: How often it was started, this time included.
        """
        began_s = time.monotonic()
        what: dict[str, Any] = {"run": run.index, "seed": run.seed, "device": slot.name, "attempt": attempt}
        self.write("run_started", **what, pid=os.getpid())
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, Interrupted)
            cause = str(error) or type(error).__name__
            self.write("run_stopped" if stopped else "run_failed", **what, cause=cause)
            raise
        self.write("run_finished", **what, seconds=round(time.monotonic() - began_s, 3))

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event.

        Args:
            event: Its name.
            fields: What else there is to say: JSON values, or anything whose `str` says it, such as a path.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        content = {"time": now, "monotonic_s": round(time.monotonic(), 6), "event": event, **fields}
        try:
            self._append(json.dumps(content, default=str).encode() + b"\n")
        except OSError as error:
            if not self._warned:
                _log.warning(
                    "%s The experiment goes on; its event log has gaps.",
                    disk_error(error, self.path, need_bytes=4096),
                )
            self._warned = True

    def _append(self, line: bytes) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.fstat(fd).st_size
            if not self._at_line_start and end and os.pread(fd, 1, end - 1) != b"\n":
                line = b"\n" + line  # what a crash or a full disk left of the last line stays by itself
            self._at_line_start = False
            # A single call, so that two processes that append at once do not mix their lines.
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._at_line_start = True
        finally:
            os.close(fd)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Returns the events of a log, the oldest first; without lines that a crash tore apart.

    Args:
        path: `ExperimentPaths.events`. There are no events if there is no such file.

    Raises:
        RunError: If the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}. Check its permissions.") from error
    return [event for line in lines if (event := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
