"""What a user may meet instead of a result; `__main__` turns each into a short message and an exit code.

Anything else that reaches the top is a fault of ours and keeps its traceback.
"""

import signal


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
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


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
        return RunError(f"{what}: {error.filename}" if error.filename is not None else what)
    return None
