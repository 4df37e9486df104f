"""Whether a Trainer does what its config says: Lightning replaces some settings by others and goes on.

The config is what a recording says of itself. So whatever a built Trainer holds under the name of a setting
is compared with what was asked for, and what it makes of weights with what the model was asked for.
"""

import inspect
import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from torch import nn

from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import Slot
from flannel_pl.recording.arithmetic import unified
from flannel_pl.recording.sameness import INCIDENTAL, comparable
from flannel_pl.training.trainer import shown


def refuse_replaced(trainer: Any, config: Config, slot: Slot, *, elsewhere: bool = False) -> None:
    """Refuses a run that would be trained with other settings than its config has.

    Args:
        trainer: The Trainer, built from the config.
        config: The run's complete config.
        slot: Where it was built for.
        elsewhere: Whether the run is trained on a device of another kind, which may know a precision that
            this one does not.

    Raises:
        UserError: Names the key, what was asked for, and what would be trained.
    """
    device = trainer.strategy.root_device
    if (device.type, device.index or 0) != (slot.accelerator, slot.number or 0):
        raise UserError(
            f"this run is to be trained on {slot.name}, but Lightning would train it on {device}; leave out "
            "trainer.plugins"
        )
    asked = {key: value for key, value in config.trainer.arguments.items() if value is not None}
    if elsewhere:
        asked.pop("precision", None)
    for key in inspect.signature(Trainer).parameters.keys() & asked.keys():
        used = getattr(trainer, key, None)
        is_plain = isinstance(used, bool | int | float | str) and f"trainer.{key}" not in INCIDENTAL
        if is_plain and not _is_same(key, asked[key], used):
            raise UserError(
                f"trainer.{key} is {shown(asked[key])}, but with the other settings of trainer, on "
                f"{device.type}, Lightning would train with {shown(used)}, and the recording would not say "
                f"so; ask for {shown(used)}, or leave it out"
            )
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
    longest = Timer(asked.get("max_time"))._duration
    if longest is not None and any(timer._duration != longest for timer in timers):
        raise UserError(
            f"trainer.max_time is {shown(asked['max_time'])}, which Lightning ignores where "
            "trainer.callbacks has a Timer; leave out one of them"
        )
    _refuse_other_weights(trainer.precision_plugin, config)


def _is_same(key: str, asked: Any, used: Any) -> bool:
    """Tells whether a value is what was asked for, or Lightning's word for it; 1 batch is not all batches."""
    if key == "precision":
        asked = unified(asked)
    elif key == "num_sanity_val_steps" and asked == -1:
        asked = math.inf
    key = f"trainer.{key}"
    return bool(asked == used and (asked != 1 or comparable(key, asked) == comparable(key, used)))


def _refuse_other_weights(precision_plugin: Any, config: Config) -> None:
    """Refuses a precision that gives the weights another type than the model's."""
    asked = config.model.arguments.get("param_dtype")
    if config.model.class_path is not None or asked is None:
        return  # what it makes of its weights is its own business, and the file says what is recorded
    weights = nn.ParameterList([torch.zeros(1, dtype=getattr(torch, asked))])
    used = str(next(precision_plugin.convert_module(weights).parameters()).dtype).removeprefix("torch.")
    if used != asked:
        precision = shown(config.trainer.precision)
        raise UserError(
            f"model.param_dtype is {asked}, but with trainer.precision {precision} Lightning would train "
            f"weights of type {used}, and the recording would not say so; leave out trainer.precision, or "
            "choose one that ends in mixed"
        )
