"""One run in a process of its own, as the launcher starts it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from flannel_pl.errors import Interrupted, UnusableProcess, UserError
from flannel_pl.experiment import ResolvedExperiment, Run, RunPaths, Slot
from flannel_pl.imports import quick_imports
from flannel_pl.recording.writing.disk import disk_error
from flannel_pl.signals import STOP_SIGNALS, stop_signal

with quick_imports():  # once in the fork server, which imports this module, for all runs that come from it
    from flannel_pl.quantities.core.run_file import Note
    from flannel_pl.training.cli import parser_of
    from flannel_pl.training.fit import train
    from flannel_pl.training.run_log import how_it_ended

    parser_of()

IN_VAIN = 3
"""Exit code that tells the launcher that another attempt would fail in the same way; its own is 1."""

OOM_SCORE = 500
"""As if it took half of the memory more than it does."""

ORPHAN_S = 10.0
"""How long an orphaned run has to stop by itself."""


def work(experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note) -> None:
    """Trains one run and ends the process with the exit code of `flannel-pl fit`, or with `IN_VAIN`.

    Args:
        experiment: What the run belongs to.
        run: Which run.
        slot: Where.
        attempt: Counted from 1.
        note: Told what happens, for the experiment's events.
    """
    # A session of its own: Ctrl-C in the terminal reaches the launcher only, which stops its runs in order.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # which the fork server blocks
    _go_first()
    _log_to(experiment.paths.run(run.index))
    os.environ.update(slot.environment)
    threading.Thread(target=_stop_with_parent, name="flannel-parent", daemon=True).start()
    sys.exit(_train(experiment, run, slot, attempt, note))


def _train(
    experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note | None = None
) -> int:
    try:
        train(experiment, run, slot, attempt=attempt, progress_bar=False, note=note)
    except Interrupted as interruption:
        print(how_it_ended(interruption), end="", file=sys.stderr)
        return 128 + interruption.signal_number
    except Exception as error:
        print(how_it_ended(error), end="", file=sys.stderr)
        return 2 if isinstance(error, UserError) else IN_VAIN if isinstance(error, UnusableProcess) else 1
    return 0


def _go_first() -> None:
    """Has a kernel without memory end this run, which is started again, and not the launcher of all runs."""
    with contextlib.suppress(OSError):  # only Linux has that
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")


def _log_to(paths: RunPaths) -> None:
    """Sends everything that this process prints, also from C++, to the run's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:  # said on the launcher's terminal, since there is nowhere else
        sys.exit(f"flannel-pl: error: {disk_error(error, paths.log, need_bytes=0)}")
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _stop_with_parent() -> None:
    """Ends this process when the launcher is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), stop_signal())
    time.sleep(ORPHAN_S)
    os._exit(1)
