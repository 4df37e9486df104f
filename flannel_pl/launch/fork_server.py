"""The fork server: a process that has imported everything but touched no device, from which runs are forked.

So only the first run of an experiment pays for the imports, and not even that one if the server is started
while the launcher is still importing the same.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import signal
from typing import Any

SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Those that ask to stop besides Ctrl-C; the last one is how a scheduler warns of a time limit."""


def start_fork_server(preload: str) -> None:
    """Starts the fork server, unless this process has one, and does not wait until it is ready.

    It is deaf to the signals that ask to stop: a scheduler that ends a job signals every process of it, and
    without the fork server the launcher could not see any more how its runs end.

    Args:
        preload: Name of the module that it imports.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in SCHEDULER_SIGNALS}
    try:
        forkserver.ensure_running()  # it inherits what is ignored
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    atexit.unregister(stop_fork_server)
    atexit.register(stop_fork_server)


def stop_fork_server() -> None:
    """Ends the fork server, if there is one, also in the middle of its imports.

    By itself it would end only after them, and keep whoever reads our output waiting until then.
    """
    server: Any = forkserver._forkserver  # there is no public way
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()
