"""Gathers runs as they finish, while others still train, in a thread of the launcher."""

import queue
import threading

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.events import EventLog
from flannel_pl.recording.gatherer import Gatherer


class BackgroundGather:
    """Copies every run it is told of into the experiment's gathered file.

    A failure ends the copying and no training: gathering again, after it, says what is wrong.

    Args:
        paths: The experiment's files.
        events: Told of every run that is gathered.
    """

    def __init__(self, paths: ExperimentPaths, *, events: EventLog) -> None:
        self._paths, self._events = paths, events
        self._finished: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="flannel-gather")
        self._thread.start()

    def add(self, run_index: int) -> None:
        """Queues a finished run."""
        self._finished.put(run_index)

    def close(self) -> None:
        """Waits for the runs that are queued."""
        self._finished.put(None)
        self._thread.join()

    def _work(self) -> None:
        gatherer: Gatherer | None = None
        try:
            while (index := self._finished.get()) is not None:
                gatherer = gatherer or Gatherer(self._paths.folder)
                gatherer.add(index)
                self._events.write("run_gathered", run=index)
        except (UserError, RunError) as error:
            self._events.write("gather_failed", cause=str(error))
