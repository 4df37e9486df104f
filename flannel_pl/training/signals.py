"""What SIGINT and SIGTERM do to a run: the first ends it after the step it is in, the second at once."""

import os
import signal
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from flannel_pl.training.recorder import StepRecorder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Those that ask a run to stop. Schedulers can be told to send SIGUSR1 before a time limit."""

REPEAT_S = 1.0
"""A scheduler may send its signal twice, by itself and through the job's script. That is one request."""


class StopOnSignal(Callback):
    """Hands the first signal to the recorder, which brings everything to the disk at the end of the step.

    In place of Lightning's own handlers while training lasts: those stop between any two statements, where a
    checkpoint would not be the state after a step.

    Args:
        recorder: Whom to tell.
    """

    def __init__(self, recorder: StepRecorder) -> None:
        self._recorder = recorder
        self._previous: dict[int, Any] = {}
        self._asked_s = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over; Lightning has registered its handlers by now."""
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back."""
        self._restore()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._recorder.stop_signal is None:
            self._recorder.stop_signal, self._asked_s = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._asked_s > REPEAT_S:
            os._exit(128 + number)  # what is on the disk is whole at any moment

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
