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


class Interrupted(Exception):
    """The user or the system asked us to stop: exit code 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
