"""log.txt of a run that is trained in the process of its command: what is seen there, and why it failed."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannel_pl.errors import Interrupted, RunError, UserError
from flannel_pl.recording.writing.disk import explained
from flannel_pl.terminal import copied_to, goes_to


@contextmanager
def logged(path: Path, *, only_there: bool = False) -> Iterator[None]:
    """Copies what the block prints to the end of a log, and how it ended if it did so in an error.

    Not what only draws over itself, such as a progress bar, and nothing twice where the output is that log
    already, as it is in a Slurm task.

    Args:
        path: `RunPaths.log`; its folder must exist.
        only_there: Whether what goes to `sys.stdout` and what libraries log is seen in the log alone.

    Raises:
        RunError: If the log cannot be opened.
    """
    with explained(path, need_bytes=0):
        log = path.open("ab", buffering=0)  # nothing that a full disk would refuse when it is closed
    with log:
        out, err = (goes_to(stream, log) for stream in (sys.stdout, sys.stderr))
        try:
            with copied_to(log, stdout=not out, stderr=not err, moves=only_there):
                yield
        except BaseException as error:
            said_already = err and not isinstance(error, (UserError, RunError))
            with suppress(OSError):
                if not said_already:
                    log.write(how_it_ended(error).encode("utf-8", "backslashreplace"))
            raise


def how_it_ended(error: BaseException) -> str:
    """Returns why a run has ended, its last line in short."""
    if isinstance(error, Interrupted):
        return f"stopped by {error}\n"
    kind = "" if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: "
    return f"{''.join(traceback.format_exception(error))}flannel-pl: error: {kind}{error}\n"
