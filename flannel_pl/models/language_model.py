"""What the models of this package share: optimizer, schedule, clipping, and what is decayed.

As `transformers.Trainer` does it, where the notebook leans on that; docs/fidelity.md lists it.
"""

import inspect
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.models.schedules import Schedule, rate_factor

PARAM_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""What `param_dtype` may be called -> the type."""


class LanguageModel(LightningModule):
    """A language model with an optimizer; what else there is of it is a subclass's.

    A subclass keeps `learning_rate`, `warmup_steps`, `weight_decay` and the three of Adam as hyperparameters.

    Args:
        optimizer: Makes another optimizer than torch's AdamW of groups of parameters.
        lr_schedule: A schedule by name, or what makes a scheduler of an optimizer.
    """

    REPLACED_BY_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    """Arguments that say nothing where there is an `optimizer`; a config then has null for them."""

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: Schedule | LRSchedulerCallable = "linear",
    ) -> None:
        super().__init__()
        self._optimizer, self._lr_schedule = optimizer, lr_schedule

    @property
    def has_own_optimizer(self) -> bool:
        """Whether another optimizer was given."""
        return self._optimizer is not None

    @property
    def no_values(self) -> list[str]:
        """Arguments that are no plain values, so that a checkpoint that had them could not be read."""
        return ["optimizer", *["lr_schedule"] * (not isinstance(self._lr_schedule, str))]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the optimizer, by default AdamW, not fused (that rounds differently), with its schedule."""
        hparams: Any = self.hparams
        if self._optimizer is not None:
            optimizer = self._optimizer(self._parameter_groups())
        else:
            optimizer = torch.optim.AdamW(
                self._parameter_groups(),
                lr=hparams.learning_rate,
                betas=(hparams.adam_beta1, hparams.adam_beta2),
                eps=hparams.adam_epsilon,
            )
        if isinstance(self._lr_schedule, str):
            factor = rate_factor(
                self._lr_schedule, max_steps=self.trainer.max_steps, warmup_steps=hparams.warmup_steps
            )
            scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        else:
            scheduler = self._lr_schedule(optimizer)
        every_step = {"scheduler": scheduler, "interval": "step", "monitor": "loss"}
        return cast("OptimizerLRScheduler", {"optimizer": optimizer, "lr_scheduler": every_step})

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the total norm as transformers.Trainer does: summed up in the order of `parameters()`.

        Lightning goes by the optimizer's groups; a norm in float32 then differs in its last bit.
        """
        by_norm = gradient_clip_algorithm in (None, "norm")
        is_fused = getattr(
            optimizer, "_step_supports_amp_scaling", False
        )  # Lightning knows when to refuse that
        if gradient_clip_val and by_norm and not is_fused:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Splits the parameters as transformers.Trainer does: biases and layer norms are never decayed."""
        hparams: Any = self.hparams
        undecayed = set(self._undecayed_names())
        named = list(self.named_parameters())
        decayed: dict[str, Any] = {"params": [one for name, one in named if name not in undecayed]}
        if self._optimizer is None:  # else it has a decay of its own
            decayed["weight_decay"] = hparams.weight_decay
        return [decayed, {"params": [one for name, one in named if name in undecayed], "weight_decay": 0.0}]

    def _undecayed_names(self) -> Iterator[str]:
        for module_name, module in self.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm) or name == "bias":
                    yield f"{module_name}.{name}"


def mistakes_of_sizes(model: LanguageModel) -> list[str]:
    """Returns what is wrong with a model's sizes, each in words."""
    hparams: Any = model.hparams
    sizes = ("vocab_size", "hidden_dim", "n_layer", "n_head", "max_seq_len")
    mistakes = [
        f"model.{name} is {hparams[name]}, expected at least 1" for name in sizes if hparams[name] < 1
    ]
    if hparams.ff_dim is not None and hparams.ff_dim < 1:
        mistakes.append(f"model.ff_dim is {hparams.ff_dim}, expected at least 1, or null for 4 x hidden_dim")
    if hparams.max_seq_len == 1:
        mistakes.append("model.max_seq_len is 1, expected at least 2: the loss predicts a later position")
    if hparams.n_head > 0 and hparams.hidden_dim % hparams.n_head:
        mistakes.append(
            f"model.hidden_dim {hparams.hidden_dim} is not divisible by model.n_head {hparams.n_head}; "
            "change one of them"
        )
    return mistakes


def mistakes_of_training(model: LanguageModel) -> list[str]:
    """Returns what is wrong with a model's rates and decays, each in words."""
    hparams: Any = model.hparams
    replaced, defaults = model.REPLACED_BY_OPTIMIZER, inspect.signature(type(model)).parameters
    if model.has_own_optimizer:
        mistakes = [
            f"model.{name} is {hparams[name]}, but model.optimizer has its own; give it there, in init_args"
            for name in replaced
            if hparams[name] not in (None, defaults[name].default)
        ]
    else:
        mistakes = [f"model.{name} is null, expected a number" for name in replaced if hparams[name] is None]
    numbers = {name: value for name, value in hparams.items() if isinstance(value, int | float)}
    rates = ("init_scale", "init_range", "learning_rate", "weight_decay", "adam_epsilon", "warmup_steps")
    mistakes += [
        f"model.{name} is {numbers[name]}, expected 0 or more"
        for name in rates
        if name in numbers and not numbers[name] >= 0
    ]
    mistakes += [
        f"model.{name} is {numbers[name]}, expected at least 0 and below 1"
        for name in ("adam_beta1", "adam_beta2")
        if name in numbers and not 0 <= numbers[name] < 1
    ]
    mistakes += [
        f"model.{name} is {value}, expected a finite number"
        for name, value in numbers.items()
        if not math.isfinite(value)
    ]
    return mistakes
