"""A callback that holds a small run in the middle for as long as a test wants."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

VARIABLE = "FLANNEL_PL_TEST_HOLD"
STEP = 60


class Hold(Callback):
    """Waits after step 60 as long as the file exists that the environment names."""

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Waits."""
        while trainer.global_step == STEP and Path(os.environ[VARIABLE]).exists():
            time.sleep(0.05)
