"""Why a run has failed, in a line; and its journal told so once nobody starts it again.

A run that dies of its own error says so in its journal; one that is killed, or fails before it has a journal,
cannot. Whoever started it knows: the room's loop, or the script of a job that outlives us, by
`python -m flannel_pl.launch.giving_up`.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flannel_pl.config import Config
from flannel_pl.errors import Interrupted, RunError, UserError
from flannel_pl.experiment import ExperimentPaths, Run, RunPaths
from flannel_pl.launch.status import waiting_run
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.recording.writing.lock import SILENT_S, Lock
from flannel_pl.small_files import read_end

LOCK_WAIT_S = 15.0 + SILENT_S
"""As long as a run that is started waits for its last process."""

NO_WORD = "its job ended without a word (a time limit, or memory that ran out)"


def describe_exit(paths: RunPaths, code: int, pid: int | None) -> str:
    """Returns in one line why a run's process has ended.

    Args:
        paths: The run's files.
        code: Its exit code; of a signal the negative number.
        pid: Its number, if that is known.
    """
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (by hand, or because memory ran out)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}: {last_words(paths, pid)}"


def last_words(paths: RunPaths, pid: int | None) -> str:
    """Returns in one line what a run's process said before it ended with an error."""
    log = ""
    with contextlib.suppress(OSError):
        log = read_end(paths.log).decode(errors="replace")
    said = [line.strip() for line in log.splitlines() if line.strip()]
    if not said or not said[-1].startswith("flannel-pl: error: "):
        # A full disk cuts the log off anywhere; the journal's space is reserved.
        with contextlib.suppress(RunError):
            entry = Journal(paths.journal).read()
            if entry is not None and entry.pid == pid and entry.state == "failed" and entry.message:
                return entry.message
    return said[-1] if said else "it printed nothing"


def give_up(
    paths: ExperimentPaths, config: Config, run: Run, cause: str, *, attempt: int | None = None
) -> None:
    """Tells the journal of a run that it has failed and is not started again.

    A run that is done, or has told its journal itself why its last attempt failed, stays as it is.

    Args:
        paths: The experiment's files.
        config: Its config.
        run: Which run; no process trains it any more.
        cause: Why it has failed.
        attempt: Its last one, from 1; None = the one that its journal is about.
    """
    if paths.run(run.index).recording.exists():
        return
    journal = Journal(paths.run(run.index).journal)
    with contextlib.suppress(RunError, OSError):
        entry = journal.read() or _first_entry(config, run)
        attempt = attempt or max(1, entry.attempt)
        if entry.state != "failed" or entry.attempt != attempt:
            failed = dataclasses.replace(entry, state="failed", attempt=attempt, message=cause)
            journal.write(dataclasses.replace(failed, updated_s=time.time()))


@contextlib.contextmanager
def told_to_script(paths: RunPaths) -> Iterator[None]:
    """Agrees with the script of a job, if there is one, on who says how the block's run has ended.

    It hears which run that is, so that it can give it up. Until then a run that has failed has not failed for
    good, as its journal says, but waits for its next start.
    """
    if tell := os.environ.get("FLANNEL_PL_TELL"):
        with contextlib.suppress(OSError):  # the script has told it to itself, or does without
            Path(tell).write_bytes(
                b"".join(os.fsencode(word) + b"\0" for word in (sys.executable, paths.folder))
            )
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception:
        if int(os.environ.get("FLANNEL_PL_RETRIES_LEFT", 0)) > 0:
            journal = Journal(paths.journal)
            with contextlib.suppress(RunError, OSError):
                entry = journal.read()
                if entry is not None and entry.state == "failed":
                    journal.write(dataclasses.replace(entry, state="waiting"))
        raise


def _first_entry(config: Config, run: Run) -> JournalEntry:
    now_s = time.time()
    return JournalEntry(
        run=run.index,
        seed=run.seed,
        swept=run.swept,
        state="waiting",
        attempt=0,
        device="",
        host=socket.gethostname(),
        pid=0,
        num_rows=waiting_run(config, run).num_rows,
        rows_written=0,
        rows_committed=0,
        loss=None,
        bytes_written=0,
        started_s=now_s,
        updated_s=now_s,
    )


def main(words: Sequence[str]) -> None:
    """Gives up a run whose job ends, or every run of an experiment that was cut off.

    Args:
        words: The folder of a run, the exit code of its last process as the shell has it, which attempt that
            was, and the process's number; or only the folder of an experiment whose jobs have ended.
    """
    folder = Path(words[0])
    if len(words) == 1:
        paths = ExperimentPaths.find(folder)
        record = read_record(paths)
        for run in record.runs:
            if _says_it_is_running(paths.run(run.index)):
                _give_up_locked(paths, record.settings, run, NO_WORD, None)
        return
    paths = ExperimentPaths.find(folder.parent)
    record = read_record(paths)
    run = record.runs[RunPaths(folder).number]
    code, attempt, pid = (int(word) for word in words[1:])
    cause = describe_exit(paths.run(run.index), 128 - code if code > 128 else code, pid)
    _give_up_locked(paths, record.settings, run, cause, attempt)


def _says_it_is_running(paths: RunPaths) -> bool:
    with contextlib.suppress(RunError, OSError):
        entry = Journal(paths.journal).read()
        return entry is not None and entry.state == "running"
    return False


def _give_up_locked(
    paths: ExperimentPaths, config: Config, run: Run, cause: str, attempt: int | None
) -> None:
    """Gives a run up, unless another process trains it by now."""
    lock = Lock(paths.run(run.index).lock, what=f"run {run.index} of {paths.folder}")
    try:
        lock.acquire(wait_s=LOCK_WAIT_S if attempt else 0.0)
    except UserError:
        return
    try:
        give_up(paths, config, run, cause, attempt=attempt)
    finally:
        lock.release()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, RunError) as error:
        sys.exit(f"flannel-pl: {error}")
