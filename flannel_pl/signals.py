"""The signals that ask to stop, and taking them over for a while.

One that was ignored when the process was started stays ignored. That is how nohup, and a script that starts
something in the background, keep a terminal's signals from what is to go on without it.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from flannel_pl.errors import Interrupted

SCHEDULER_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
"""Those that ask to stop besides Ctrl-C. A scheduler can be told to send SIGUSR1 before a time limit; where
the system has no terminals to hang up, there is no SIGHUP."""

STOP_SIGNALS = (*SCHEDULER_SIGNALS, signal.SIGINT)
"""All that ask to stop."""

REPEAT_S = 1.0
"""A scheduler may send its signal twice, by itself and through the job's script. That is one request."""


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Returns those of `STOP_SIGNALS` that this process does not ignore."""
    return tuple(number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN)


def stop_signal() -> signal.Signals:
    """Returns the signal that stops a process which ignores what this one ignores: SIGTERM if that does."""
    return next(iter(heeded_signals()), signal.SIGTERM)


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], object], *, heeded: Sequence[signal.Signals] | None = None
) -> Iterator[None]:
    """Has `handler` called for every signal that asks to stop, for the length of a block.

    Args:
        handler: Called in the main thread, with the signal's number and the frame that it came in.
        heeded: The signals it is called for, the others being ignored; None = those not ignored now.
    """
    wanted = heeded_signals() if heeded is None else heeded
    previous = {
        number: signal.signal(number, handler if number in wanted else signal.SIG_IGN)
        for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets a scheduler's signals end a block as Ctrl-C does: in order, with a word how to go on.

    Python handles signals in its main thread; in another one this does nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled(interrupt):
        yield
