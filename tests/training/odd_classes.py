"""Loggers and callbacks of somebody else's, as a config may name them."""

import builtins
import json
from enum import Enum
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override


class Saver(ModelCheckpoint):
    """A checkpoint callback under another name."""


class Watcher(EarlyStopping):
    """An early stopping of which nobody knows what it watches."""


class EagerLogger(CSVLogger):
    """Makes its folder as soon as it is made itself."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        Path(save_dir, "made early").mkdir(parents=True)


class Color(Enum):
    red = 1


class Colored(Callback):
    """Has a default that no text stands for."""

    def __init__(self, color: Any = Color.red) -> None:
        self._color = color


class Failing(Callback):
    """Raises an error, when it is told to.

    Args:
        error: Name of the error.
        step: After which step; 0 = before the first.
    """

    def __init__(self, error: str, step: int = 0) -> None:
        self._error: type[Exception] = getattr(builtins, error)
        self._step = step

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._step == 0:
            raise self._error("odd")

    @override
    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if trainer.global_step == self._step:
            raise self._error("odd")


class FailingAtTheEnd(Failing):
    """Raises an error in the last hook that there is, in a library that it uses."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        json.loads("{")
