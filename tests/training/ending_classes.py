"""Callbacks that end a training on purpose, named by class_path in tests of early ends."""

import os
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


class CountEpochs(Callback):
    """Asks for the end when it has seen some epochs end; as EarlyStopping it counts, and keeps its count."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs, self.seen = num_epochs, 0

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen += 1
        if self.seen >= self.num_epochs:
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


class DieAtTheEnd(Callback):
    """Kills the process where a training has ended, before its recording has its name."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.abort()
