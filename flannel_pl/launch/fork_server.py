"""The fork server: a process that has imported everything but touched no device, from which runs are forked.

So only the first run of an experiment pays for the imports, and not even that one if the server is started
while the launcher is still importing the same.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver as forkserver
import multiprocessing.resource_tracker as resource_tracker
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from flannel_pl.errors import UserError
from flannel_pl.signals import SCHEDULER_SIGNALS

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where the server's socket is made if TMPDIR will not do."""

_started: int | None = None
"""Number of the process that was started here; a program may have one of its own."""

SOCKET_FOLDER_BYTES = 70
"""Length of a path in which every system takes the socket: macOS gives all of it 104 bytes, Linux 108."""


def start_method(accelerator: str | None = None) -> Literal["forkserver", "spawn"]:
    """Returns how `multiprocessing` starts the runs here.

    On macOS a process that was forked from one that has asked for the GPU cannot use it, and transformers
    asks when it is imported. There each run is a new process that imports everything by itself.

    Args:
        accelerator: Where the runs are trained; None = that is not known yet.
    """
    return "forkserver" if sys.platform == "linux" and accelerator != "mps" else "spawn"


def start_fork_server(preload: str) -> None:
    """Starts the fork server, unless this process has one, and does not wait until it is ready.

    It is deaf to the signals that ask to stop: a scheduler that ends a job signals every process of it, and
    without the fork server the launcher could not see any more how its runs end. It blocks them, and does not
    ignore them, so that the runs can tell what the launcher ignores; they have to unblock them.

    Args:
        preload: Name of the module that it imports.

    Raises:
        UserError: If no folder for temporary files takes the socket that it is asked through.
    """
    global _started
    server: Any = forkserver._forkserver  # there is no public way
    before = server._forkserver_pid
    multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    start_deaf(resource_tracker.ensure_running)  # by itself, since it unblocks some of them in us
    folder, tempfile.tempdir = tempfile.tempdir, _socket_folder()
    try:
        start_deaf(forkserver.ensure_running)
    finally:
        tempfile.tempdir = folder
    if server._forkserver_pid != before:
        _started = server._forkserver_pid
    atexit.unregister(stop_fork_server)
    atexit.register(stop_fork_server)


def fork_server_bytes() -> int:
    """Returns the memory that the fork server takes for itself, in bytes; 0 if there is none."""
    server: Any = forkserver._forkserver  # there is no public way
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{server._forkserver_pid}/status").read_text()
        if match := re.search(r"RssAnon:\s+(\d+) kB", status):
            return int(match[1]) * 1024
    return 0


def start_deaf(start: Callable[[], object], numbers: Sequence[signal.Signals] = SCHEDULER_SIGNALS) -> None:
    """Has `start` start a process that blocks some signals until it unblocks them.

    Args:
        start: Starts it.
        numbers: The signals.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _socket_folder() -> str:
    """Returns a folder for temporary files in which a socket can be made as `multiprocessing` does it.

    Its path may have a hundred bytes, and not every file system knows sockets and permissions, so it is
    tried.
    """
    try:
        preferred = tempfile.gettempdir()  # TMPDIR, if that can be written
    except FileNotFoundError:
        preferred = ""
    for folder in filter(os.path.isdir, (preferred, *SHORT_FOLDERS)):
        with (
            contextlib.suppress(OSError),
            tempfile.TemporaryDirectory(prefix="pymp-", dir=folder) as trial,
            socket.socket(socket.AF_UNIX) as trial_socket,
        ):
            address = f"{trial}/listener-{8 * 'x'}"
            trial_socket.bind(address)
            os.chmod(address, 0o600)  # noqa: PTH101 - as it is done there
            return folder
    raise UserError(
        f"no folder for temporary files takes a socket, through which runs are started: TMPDIR is "
        f"{os.environ.get('TMPDIR', 'not set')}; set it to a folder that can be written, on a local disk, "
        f"with a path of at most {SOCKET_FOLDER_BYTES} bytes"
    )


def stop_fork_server() -> None:
    """Ends the fork server, if it is one of ours, also in the middle of its imports.

    By itself it would end only after them, and keep whoever reads our output waiting until then. A pool that
    somebody else starts from it could not be ended: what it forks is deaf, too.
    """
    server: Any = forkserver._forkserver  # there is no public way
    if server._forkserver_pid is not None and server._forkserver_pid == _started:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()
