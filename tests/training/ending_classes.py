"""Callbacks that end a training on purpose, named by class_path in tests of early ends."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class StopBySeed(Callback):
    """Asks for the end in the middle of an epoch, after some more steps for every seed."""

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step >= 3 + 2 * (torch.initial_seed() % 5):
            trainer.should_stop = True


class Count(Callback):
    """Keeps a count in the checkpoints, and asks for the end when that is reached."""

    def __init__(self, end: int) -> None:
        self.end, self.seen = end, 0

    def count(self, trainer: Trainer) -> None:
        self.seen += 1
        if self.seen >= self.end:
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


class CountEpochs(Count):
    """Counts as EarlyStopping does."""

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count(trainer)


class CountSteps(Count):
    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.count(trainer)
