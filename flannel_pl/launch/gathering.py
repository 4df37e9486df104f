"""Gathers an experiment: run by run in a thread of the launcher while others train, and then the rest."""

import queue
import sys
import threading
from types import TracebackType

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.events import EventLog
from flannel_pl.recording.gathering.gather import gather_aloud
from flannel_pl.recording.gathering.gathered import Mode, is_gathered
from flannel_pl.recording.gathering.gatherer import Gatherer


class _Stopped(Exception):
    """Ends a copy that is under way."""


class BackgroundGather:
    """Copies finished runs into the experiment's one file, in a thread, while others train.

    Runs that an earlier launch has finished are copied first. A failure ends the copying and no training; it
    is told at the end, and gathering is tried again by `finish_gathering`. When the block ends, the copy that
    is under way is completed and no other is begun; when an exception ends it, that copy is given up too, and
    nothing is lost by that.

    Args:
        paths: The experiment's files. No other process may gather there meanwhile.
        events: Told when the copying begins, of every run that is gathered, and of a failure.

    Example:
        >>> with BackgroundGather(paths, events=events) as background:       # doctest: +SKIP
        ...     train_all(..., finished=background.add)
        >>> finish_gathering(paths, mode="single", events=events, background=background)  # doctest: +SKIP
    """

    def __init__(self, paths: ExperimentPaths, *, events: EventLog) -> None:
        self._paths, self._events = paths, events
        self._gatherer: Gatherer | None = None
        self._failure: str | None = None
        self._finished: queue.Queue[int | None] = queue.Queue()
        self._ending, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="flannel-gather")
        self._thread.start()

    def __enter__(self) -> "BackgroundGather":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(stop=error is not None)

    @property
    def gatherer(self) -> Gatherer | None:
        """What goes on from here, once this is closed; None if it copied nothing, failed or was stopped."""
        return self._gatherer

    def add(self, run_index: int) -> None:
        """Queues a finished run."""
        self._finished.put(run_index)

    def close(self, *, stop: bool = False) -> None:
        """Ends the thread and tells of a failure.

        Args:
            stop: Whether to give up the copy that is under way, instead of completing it.
        """
        self._ending.set()
        if stop:
            self._stopping.set()
        self._finished.put(None)  # wakes the thread
        try:
            self._thread.join()
        except BaseException:  # Ctrl-C while waiting
            self._stopping.set()
            self._thread.join()
            raise
        if self._failure is not None:
            print(f"flannel-pl: gathering while runs trained has failed: {self._failure}", file=sys.stderr)

    def _work(self) -> None:
        try:
            self._gatherer = self._copy_runs(Gatherer(self._paths.folder))
        except _Stopped:
            pass
        except Exception as error:
            # Whatever it is, it must stop no training. A fault of ours shows again in `finish_gathering`.
            self._failure = str(error) or type(error).__name__
            self._events.write("gather_failed", cause=self._failure)

    def _copy_runs(self, gatherer: Gatherer) -> Gatherer | None:
        """Copies runs until there are no more; returns what did so, if anything was to be done."""
        copied: set[int] = set()
        for index in gatherer.waiting:
            self._finished.put(index)
        while (run_index := self._finished.get()) is not None and not self._ending.is_set():
            if run_index in copied:
                continue
            if not copied:
                self._events.write("gather_started")
            gatherer.add(run_index, advance=self._raise_if_stopping)
            copied.add(run_index)
            if run_index in gatherer.gathered:
                self._events.write("run_gathered", run=run_index)
        return gatherer if copied else None

    def _raise_if_stopping(self, num_bytes: int) -> None:
        if self._stopping.is_set():
            raise _Stopped


def finish_gathering(
    paths: ExperimentPaths, *, mode: Mode, events: EventLog, background: BackgroundGather | None = None
) -> bool:
    """Sees to it that the experiment's recording is there, with every run, and nothing is left of gathering.

    Changes nothing, not even a time of modification, and reads no row, if all is in order already.

    Args:
        paths: The experiment's files. No other process may gather there meanwhile.
        mode: What the recording is to be, `single` or `index`.
        events: Told when gathering begins and how it ends.
        background: What has gathered while runs trained, closed. Its copies are not checked a second time.

    Returns:
        Whether anything was gathered; False if the recording was there already.

    Raises:
        UserError: If the disk is too small.
        RunError: If runs are missing or damaged, or the disk fails.
    """
    if is_gathered(paths, mode=mode):
        return False
    gatherer = None if background is None else background.gatherer
    begun = gatherer is not None
    if mode == "single":
        gatherer = gatherer or Gatherer(paths.folder)
        if gatherer.is_finished:
            gatherer.finish()  # clears away what a crash has left
            return False
    if not begun:
        events.write("gather_started")
    try:
        gather_aloud(paths.folder, mode=mode, gatherer=gatherer)
    except (UserError, RunError) as error:
        events.write("gather_failed", cause=str(error))
        raise
    events.write("gather_finished")
    return True
