"""What the optimizer does to one parameter in each step: by which rate, with which gradient, if at all.

A loss scaler (`16-mixed`) leaves a step out when a gradient is not finite, and a module may override
`optimizer_step` and do the same. Lightning counts such a step like any other; whether the optimizer has
really stepped, only its own hook tells.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.quantities.core import kept_as_it_is
from flannel_pl.training.keeping import kept_state


def may_skip(trainer: Trainer, module: LightningModule) -> bool:
    """Tells whether something decides from step to step that the optimizer does not step."""
    plugin: Any = trainer.precision_plugin
    if getattr(plugin, "scaler", None) is not None or is_overridden("optimizer_step", module):
        return True
    return type(plugin).optimizer_step not in (Precision.optimizer_step, MixedPrecision.optimizer_step)


class OptimizerWatch:
    """Follows the one optimizer of a training, as far as it concerns one parameter.

    Args:
        trainer: Its Trainer, once the optimizer is there.
        module: What is trained.
        parameter: The parameter; an optimizer need not hold it.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, parameter: Tensor) -> None:
        self.parameter, self._module = parameter, module
        self._optimizer = trainer.optimizers[0]
        self._scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        self._skipped: bool | Tensor = False
        self._kept_of: dict[int, Mapping[str, torch.dtype] | None] = {}
        self._rate: float | Tensor = float("nan")
        self._rate_of_step: float | Tensor | None = None
        self._hook = None
        self._may_skip = self._skipped = may_skip(trainer, module)
        # The module's own hook comes after those of callbacks, and may set the rate.
        if self._may_skip or is_overridden("on_before_optimizer_step", module):
            self._hook = self._optimizer.register_step_post_hook(self._has_stepped)

    def close(self) -> None:
        """Lets go of the optimizer."""
        if self._hook is not None:
            self._hook.remove()

    def refuse_replaced(self, trainer: Trainer) -> None:
        """Refuses to go on with an optimizer that does not step any more.

        Raises:
            UserError: If the Trainer has another one now.
        """
        if [id(one) for one in trainer.optimizers] != [id(self._optimizer)]:
            raise UserError(
                "the Trainer has another optimizer than when training started, so learning rate and moments "
                "would be those of one that does not step any more; change the optimizer in place "
                "(add_param_group, param_groups) to record it"
            )

    def begin_batch(self) -> None:
        """Has to be called before each batch, for `rate_of_batch`."""
        self._rate = kept_as_it_is(self.rate)

    @property
    def rate_of_batch(self) -> float | Tensor:
        """The rate at the beginning of the batch; at its end the schedule has changed it already."""
        return self._rate

    @property
    def rate_of_step(self) -> float | Tensor | None:
        """The rate that the optimizer has stepped with since `end_step`, where it may differ from `rate`."""
        return self._rate_of_step

    @property
    def rate(self) -> float | Tensor:
        """The learning rate of the parameter now; NaN if the optimizer has none for it."""
        rate: float | Tensor | None = (self._group or {}).get("lr")
        if isinstance(rate, Tensor):
            return rate.reshape(())  # torch takes one of shape (1), too
        return float("nan") if rate is None else rate

    @property
    def _group(self) -> dict[str, Any] | None:
        """The group of the optimizer that holds the parameter now; None if none does."""
        for group in self._optimizer.param_groups:
            if any(parameter is self.parameter for parameter in group["params"]):
                return group
        return None

    def gradient(self, of: Tensor | None = None) -> Tensor:
        """Returns a parameter's gradient, not scaled; zeros if the loss does not depend on it.

        Args:
            of: The parameter; None = the recorded one.
        """
        parameter = self.parameter if of is None else of
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(parameter)
        return self._unscaled(gradient.to_dense() if gradient.is_sparse else gradient)

    def gradient_norm(self) -> Tensor:
        """Returns the total norm of the gradients of all parameters that the optimizer holds.

        It is summed up in the order of the module's parameters, on which its last bit depends.
        """
        held = {id(one): one for group in self._optimizer.param_groups for one in group["params"]}
        in_order = [held.pop(id(one)) for one in self._module.parameters() if id(one) in held]
        parameters = (*in_order, *held.values())
        gradients = [self._unscaled(_stored(one.grad)) for one in parameters if one.grad is not None]
        # The function that clip_grad_norm_ calls, so by this very number `TiedGPT2` scales a step.
        return torch.nn.utils.get_total_norm(gradients)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        """Returns a gradient without the loss scaler's factor, which a fused optimizer removes by itself."""
        if self._scaler is None or not getattr(self._optimizer, "_step_supports_amp_scaling", False):
            return gradient
        scale = self._scaler._get_scale_async()  # get_scale would wait for the device
        return gradient if scale is None else (gradient.float() / scale).to(gradient.dtype)

    def _kept(self, parameter: Tensor) -> Mapping[str, torch.dtype] | None:
        """See `kept_state`; asked for only if a moment is recorded."""
        if id(parameter) not in self._kept_of:
            self._kept_of[id(parameter)] = kept_state(self._optimizer, parameter)
        return self._kept_of[id(parameter)]

    def never_keeps(self, key: str | None, parameter: Tensor | None = None) -> bool:
        """Tells whether it is known that the optimizer, if it holds a parameter, keeps no such thing."""
        if key is None:
            return False
        kept = self._kept(self.parameter if parameter is None else parameter)
        return kept is not None and key not in kept

    def kept_dtypes(
        self, wanted: Mapping[str, str], parameter: Tensor | None = None, *, of: str
    ) -> dict[str, str]:
        """Returns of which type the optimizer is going to keep each of some things of a parameter.

        Args:
            wanted: Recorded tensor -> its name in the optimizer's state.
            parameter: None = the recorded one.
            of: The parameter's name, for the message.

        Raises:
            UserError: Names all that it never keeps.
        """
        parameter = self.parameter if parameter is None else parameter
        if never := {name: key for name, key in wanted.items() if self.never_keeps(key, parameter)}:
            raise UserError(self._keeps_none(never, of))
        # Not asked for if nothing is wanted: then no copy steps.
        kept = (self._kept(parameter) or {}) if wanted else {}
        dtypes = {name: kept.get(key, parameter.dtype) for name, key in wanted.items()}
        return {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}

    def state(self, key: str, parameter: Tensor | None = None, *, of: str, wanted: str) -> Tensor:
        """Returns what the optimizer keeps of a parameter after a step; zeros as long as that is not there.

        Args:
            key: Its name in the optimizer's state.
            parameter: None = the recorded one.
            of: The parameter's name, for the message.
            wanted: The name of the recorded tensor, for the message.

        Raises:
            UserError: If it is not there and the optimizer could not be asked before, or of another shape.
        """
        parameter = self.parameter if parameter is None else parameter
        kept = self._optimizer.state.get(parameter, {})  # reading must not make an entry
        found = kept.get(key)
        if isinstance(found, Tensor):
            found_shape, expected_shape = tuple(found.shape), tuple(parameter.shape)
            if found_shape != expected_shape:
                raise UserError(
                    f"recorder.tensors has {wanted!r}, but what {type(self._optimizer).__name__} keeps as "
                    f"{key!r} for {of} has shape {found_shape}, expected {expected_shape}; "
                    "leave it out of recorder.tensors"
                )
            return found
        if self._kept(parameter) is None and parameter.grad is not None and not self._skipped:
            raise UserError(self._keeps_none({wanted: key}, of))
        return torch.zeros_like(parameter)

    def _keeps_none(self, wanted: Mapping[str, str], of: str) -> str:
        tensors, keys = (" and ".join(map(repr, names)) for names in (wanted, wanted.values()))
        return (
            f"recorder.tensors has {tensors}, but {type(self._optimizer).__name__} keeps no {keys} for {of}; "
            f"leave {'it' if len(wanted) == 1 else 'them'} out of recorder.tensors"
        )

    @property
    def skipped(self) -> bool | Tensor:
        """Whether the optimizer has not stepped since `end_step`; a bool, or one on the device."""
        return self._skipped

    def end_step(self) -> None:
        """Has to be called after each step."""
        self._skipped = self._may_skip
        self._rate_of_step = None

    def _has_stepped(self, optimizer: Any, *_: Any) -> None:
        self._rate_of_step = kept_as_it_is(self.rate)
        # A fused optimizer is called in any case, and leaves the step out on the device.
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = False if found_inf is None else found_inf != 0


def _stored(gradient: Tensor) -> Tensor:
    """Returns the numbers of a gradient, of a sparse one those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
