"""Callbacks that hold a small run in the middle, for as long as a test wants, or kill it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder

VARIABLE = "FLANNEL_PL_TEST_HOLD"
STEP = 60


class Hold(Callback):
    """Waits before step 61 as long as the file exists that the environment names and no signal has come."""

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *rest: Any) -> None:
        """Waits."""
        (recorder,) = [one for one in trainer.callbacks if isinstance(one, StepRecorder)]
        while trainer.global_step == STEP and Path(os.environ[VARIABLE]).exists():
            if recorder.stop_signal is not None:
                break
            time.sleep(0.05)


class Killed(Callback):
    """Is killed at its first step, as by a kernel that has no memory left."""

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *rest: Any) -> None:
        """Kills the process."""
        os.kill(os.getpid(), signal.SIGKILL)
