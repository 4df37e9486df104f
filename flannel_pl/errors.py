"""What a user may meet instead of a result; `__main__` turns each into a short message and an exit code.

Anything else that reaches the top is a fault of ours and keeps its traceback.
"""

import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

_LIBRARIES = sys.stdlib_module_names | {
    *("torch", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "transformers"),
    *(
        "tokenizers",
        "safetensors",
        "numpy",
        "ml_dtypes",
        "xxhash",
        "jsonargparse",
        "docstring_parser",
        "yaml",
    ),
    *("typeshed_client", "fsspec", "jinja2", "matplotlib", "PIL", "rich", "scipy", "tqdm"),
}
"""What we are built on: it calls us, and callbacks and plugins that a config names."""

_OURS = Path(__file__).parent


class UserError(ValueError):
    """Wrong usage, configuration or input: exit code 2.

    The message says what was got, what was expected, and what to do next.
    """


class RunError(RuntimeError):
    """The world around us (disk, child process, damaged file) made a run or a check fail: exit code 1.

    The message says what failed, where, and what to do next.
    """


class UnusableProcess(RunError):
    """A RunError that every process started in the same way would meet, so that no other attempt helps."""


class Unreachable(RunError):
    """A file cannot be read at the moment, and nothing says that it is damaged.

    It is away, not to be opened, or its disk does not answer. Nobody may take it for lost: what is in it is
    neither removed nor recorded again.
    """


class Interrupted(Exception):
    """The user or the system asked us to stop: exit code 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        signal_number: SIGINT or SIGTERM.
        keeps_all: Whether what was done is gone on with, and not begun anew.
    """

    def __init__(self, signal_number: int, *, keeps_all: bool = True) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.keeps_all = signal_number, keeps_all


def foreign_place(error: BaseException) -> str | None:
    """Returns where in somebody else's code an error was raised, e.g. a callback's; None if it is not so.

    Such code is called by a library, and has no code of ours between itself and the error.
    """
    place, before = None, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = _package(frame)
        if package is None:
            place = None
        elif package not in _LIBRARIES and (place or before in _LIBRARIES):
            place = f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
        before = package or ""
    return place


def _package(frame: FrameType) -> str | None:
    """Returns the package whose code is called; None if that is ours."""
    if _OURS in Path(frame.f_code.co_filename).parents:
        return None
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def raised_at(error: BaseException) -> str:
    """Returns the last place of an error in code that is neither ours nor a library's; else the very last."""
    frames = list(traceback.walk_tb(error.__traceback__))
    theirs = [one for one in frames if _package(one[0]) not in (None, *_LIBRARIES)]
    frame, line = (theirs or frames)[-1]
    return f"{frame.f_code.co_filename}, line {line}"


def explanation(error: Exception) -> UserError | RunError | None:
    """Returns what to tell a user of an exception that reached the top; None for a fault of ours.

    What the system refuses is the world's, wherever it happens: a folder that is gone, no memory, no more
    processes.
    """
    if isinstance(error, UserError | RunError):
        return error
    if isinstance(error, MemoryError):
        return RunError("there is not enough memory; end something else, or use a larger machine")
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    if no_thread or isinstance(error, BlockingIOError):
        return RunError(
            "the system allows no more processes or threads; end some, or raise the limit (ulimit -u)"
        )
    if isinstance(error, UnicodeEncodeError) and error.encoding in ("ascii", "latin-1"):
        text = error.object[error.start : error.end]
        return UserError(
            f"{text!r} cannot be written in the characters of this locale ({error.encoding}); choose "
            "one that has them, e.g. with LC_ALL=C.UTF-8"
        )
    if isinstance(error, UnicodeDecodeError):
        return UserError(
            f"what is to be read is no text in this locale ({error.encoding}); choose another one, e.g. with "
            "LC_ALL=C.UTF-8"
        )
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        what = f"{what}: {error.filename}" if error.filename is not None else what
        place = foreign_place(error)
        return RunError(f"{what}; raised by code that is not flannel-pl's: {place}" if place else what)
    return None
