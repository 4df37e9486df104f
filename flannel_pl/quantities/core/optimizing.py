"""What the optimizer does to parameters in each step: by which rate, with which gradient, if at all.

A loss scaler leaves a step out when a gradient is not finite, and somebody's own code may do the same.
Whether the optimizer has really stepped, only its own hook tells.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.keeping import Kept, kept_state
from flannel_pl.quantities.core.optimizers import TELLS
from flannel_pl.quantities.core.rows import kept_as_it_is
from flannel_pl.recording.formats.schema import RECORDABLE


class OptimizerWatch:
    """Follows the optimizers of a training; rate and skipped steps are those of one parameter.

    Args:
        module: What is trained.
        optimizers: What steps it. Each parameter is held by one of them, or by none.
        parameter: The parameter.
        scaler: A loss scaler, which multiplies the gradients until it takes that back.
        may_skip: Whether something decides from step to step that the optimizer does not step.
        may_change_rate: Whether the rate may become another between `begin_step` and the step.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        parameter: Tensor,
        *,
        scaler: Any = None,
        may_skip: bool = False,
        may_change_rate: bool = False,
    ) -> None:
        self.parameter, self.optimizers = parameter, tuple(optimizers)
        self._module, self._scaler = module, scaler
        self._kept_of: dict[int, tuple[Tensor, Optimizer, Kept | None]] = {}
        self._num_held = 0
        self._rate: float | Tensor = float("nan")
        self._rate_of_step: float | Tensor | None = None
        self._hooks: list[Any] = []
        self._stepped: list[Any] = []
        self._skipped: bool | Tensor = may_skip
        self._may_skip = may_skip
        if may_skip or may_change_rate:
            self._hooks = [register_optimizer_step_post_hook(self._somebody_has_stepped)]
            holder = self._optimizer_of(parameter)
            if hasattr(holder, TELLS):
                self._hooks.append(holder.register_step_post_hook(self._has_stepped))
            elif may_skip:
                raise UserError(
                    f"{type(holder).__name__} does not tell when it steps, because it was made without "
                    "torch.optim.Optimizer.__init__, so nobody knows which steps are left out; call that, or "
                    "give the recorder the optimizer that steps"
                )

    def close(self) -> None:
        """Lets go of the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def refuse_replaced(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuses to go on with an optimizer that does not step any more.

        Args:
            optimizers: Those that there are now.

        Raises:
            UserError: If they are others.
        """
        if [id(one) for one in optimizers] != [id(one) for one in self.optimizers]:
            raise UserError(
                "the Trainer has another optimizer than when training started, so learning rate and moments "
                "would be those of one that does not step any more; change the optimizer in place "
                "(add_param_group, param_groups) to record it"
            )

    def refuse_moved(self) -> None:
        """Refuses to go on once an optimizer that keeps something else holds a parameter.

        Raises:
            UserError: If one does of which it was asked what is kept.
        """
        num_held = sum(len(group["params"]) for _, group in self._groups())
        if num_held == self._num_held:
            return
        self._num_held = num_held
        for parameter, asked, kept in list(self._kept_of.values()):
            holder = self._optimizer_of(parameter)
            if holder is not asked and kept_state(holder, parameter) != kept:
                names = [name for name, one in self._module.named_parameters() if one is parameter]
                raise UserError(
                    f"{' and '.join(names) or 'a parameter'} was given to {type(holder).__name__} while "
                    f"training went on, but is recorded with what {type(asked).__name__} keeps; give it to "
                    "its optimizer before the recording begins (it may be frozen), or record it without what "
                    'an optimizer keeps: tensors ["embeddings", "grads", "losses"]'
                )

    def refuse_stranger(self) -> None:
        """Refuses a step that another optimizer made in the place of one of ours.

        Raises:
            UserError: If so.
        """
        strangers = [one for one in self._stepped if not any(one is ours for ours in self.optimizers)]
        if not strangers:
            return
        silent = [
            one
            for one in self.optimizers
            if hasattr(one, TELLS) and not any(one is who for who in self._stepped)
        ]
        idle = {id(held) for one in silent for group in one.param_groups for held in group["params"]}
        for stranger in strangers:
            if any(id(held) in idle for group in stranger.param_groups for held in group["params"]):
                raise UserError(
                    f"the step was made by another {type(stranger).__name__} than the recorder was given, so "
                    "learning rate and moments would be those of one that does not step any more; change the "
                    "optimizer in place (add_param_group, param_groups) to record it"
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
        holder = self._holder(self.parameter)
        rate: float | Tensor | None = None if holder is None else holder[1].get("lr")
        if isinstance(rate, Tensor):
            return rate.reshape(())  # torch takes one of shape (1), too
        return float("nan") if rate is None else rate

    def _groups(self) -> Iterator[tuple[Optimizer, dict[str, Any]]]:
        return ((optimizer, group) for optimizer in self.optimizers for group in optimizer.param_groups)

    def _holder(self, parameter: Tensor) -> tuple[Optimizer, dict[str, Any]] | None:
        """Returns the optimizer, and its group, that holds a parameter now; None if none does."""
        for optimizer, group in self._groups():
            if any(one is parameter for one in group["params"]):
                return optimizer, group
        return None

    def _optimizer_of(self, parameter: Tensor) -> Optimizer:
        """Returns the optimizer that holds a parameter, or else may come to hold it: the first."""
        holder = self._holder(parameter)
        return self.optimizers[0] if holder is None else holder[0]

    def gradient(self, of: Tensor | None = None) -> Tensor:
        """Returns a parameter's gradient, not scaled; zeros if the loss does not depend on it.

        Args:
            of: The parameter; None = the recorded one.
        """
        parameter = self.parameter if of is None else of
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(parameter)
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return self._unscaled(dense, self._optimizer_of(parameter))

    def gradient_norm(self) -> Tensor:
        """Returns the total norm of the gradients of all parameters that the optimizers hold.

        It is summed up in the order of the module's parameters, on which its last bit depends.
        """
        held = {id(one): (one, optimizer) for optimizer, group in self._groups() for one in group["params"]}
        in_order = [held.pop(id(one)) for one in self._module.parameters() if id(one) in held]
        gradients = [
            self._unscaled(_stored(one.grad), optimizer)
            for one, optimizer in (*in_order, *held.values())
            if one.grad is not None
        ]
        # The function that clip_grad_norm_ calls, so by this very number `TiedGPT2` scales a step.
        return torch.nn.utils.get_total_norm(gradients)

    def _unscaled(self, gradient: Tensor, optimizer: Optimizer) -> Tensor:
        """Returns a gradient without the loss scaler's factor, which may have been taken back already."""
        if self._scaler is None or _is_unscaled(self._scaler, optimizer):
            return gradient
        scale = self._scaler._get_scale_async()  # get_scale would wait for the device
        if scale is None:
            return gradient
        # As the scaler does it, to the bit.
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        inverse: Tensor = scale.double().reciprocal().float()
        return (wide * inverse).to(gradient.dtype)

    def kept(self, parameter: Tensor) -> Mapping[str, torch.dtype] | None:
        """Returns `Kept.whole`, None if it cannot be told; asked for only if a moment is recorded."""
        kept = self._kept(parameter)
        return None if kept is None else kept.whole

    def parts(self, parameter: Tensor) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns `Kept.parts`."""
        kept = self._kept(parameter)
        return {} if kept is None else kept.parts

    def _kept(self, parameter: Tensor) -> Kept | None:
        if id(parameter) not in self._kept_of:
            holder = self._optimizer_of(parameter)
            self._kept_of[id(parameter)] = parameter, holder, kept_state(holder, parameter)
        return self._kept_of[id(parameter)][2]

    def never_keeps(self, key: str, parameter: Tensor) -> bool:
        """Tells whether it is known that the optimizer, if it holds a parameter, keeps no such thing."""
        kept = self.kept(parameter)
        return kept is not None and key not in kept

    def kept_dtypes(self, wanted: Mapping[str, str], parameter: Tensor, *, of: str) -> dict[str, str]:
        """Returns of which type the optimizer is going to keep each of some things of a parameter.

        Args:
            wanted: Recorded tensor -> its name in the optimizer's state.
            parameter: The parameter.
            of: The parameter's name, for the message.

        Raises:
            UserError: Names all that it never keeps.
        """
        if never := {name: key for name, key in wanted.items() if self.never_keeps(key, parameter)}:
            raise UserError(self._keeps_none(never, of, parameter))
        # Not asked for if nothing is wanted: then no copy steps.
        kept = (self.kept(parameter) or {}) if wanted else {}
        dtypes = {name: kept.get(key, parameter.dtype) for name, key in wanted.items()}
        return {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}

    def state(
        self,
        key: str,
        parameter: Tensor | None = None,
        *,
        of: str = "the parameter",
        wanted: str | None = None,
    ) -> Tensor:
        """Returns what the optimizer keeps of a parameter after a step; zeros as long as that is not there.

        Args:
            key: Its name in the optimizer's state.
            parameter: None = the recorded one.
            of: The parameter's name, for the message.
            wanted: The name of the recorded tensor, for the message; None = the key.

        Raises:
            UserError: If it is not there and the optimizer could not be asked before, or of another shape.
        """
        parameter, wanted = self.parameter if parameter is None else parameter, wanted or key
        kept = self._optimizer_of(parameter).state.get(parameter, {})  # reading must not make an entry
        found = kept.get(key)
        if isinstance(found, Tensor):
            found_shape, expected_shape = tuple(found.shape), tuple(parameter.shape)
            if found_shape not in (expected_shape, self._part_shape(key, parameter)):
                kind = type(self._optimizer_of(parameter)).__name__
                raise UserError(
                    f"recorder.tensors has {wanted!r}, but what {kind} keeps as "
                    f"{key!r} for {of} has shape {found_shape}, expected {expected_shape}; "
                    "leave it out of recorder.tensors"
                )
            return found.to_dense() if found.is_sparse else found
        if self.kept(parameter) is None and parameter.grad is not None and not self._skipped:
            raise UserError(self._keeps_none({wanted: key}, of, parameter))
        shape = self._part_shape(key, parameter)
        return torch.zeros_like(parameter) if shape is None else parameter.new_zeros(shape)

    def _part_shape(self, key: str, parameter: Tensor) -> tuple[int, ...] | None:
        """Returns the shape of what is kept under a key, if it is a part that was asked for."""
        _, _, kept = self._kept_of.get(id(parameter), (None, None, None))
        return kept.parts[key][1] if kept is not None and key in kept.parts else None

    def _keeps_none(self, wanted: Mapping[str, str], of: str, parameter: Tensor) -> str:
        tensors, keys = (" and ".join(map(repr, names)) for names in (wanted, wanted.values()))
        kind = type(self._optimizer_of(parameter)).__name__
        if not set(wanted) <= set(RECORDABLE):
            there = ", ".join([*(self.kept(parameter) or {}), *self.parts(parameter)]) or "nothing"
            return f"{kind} keeps no {keys} of {of}, for {tensors}; it keeps: {there}"
        return (
            f"recorder.tensors has {tensors}, but {kind} keeps no {keys} for {of}; "
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
        self._stepped.clear()

    def _somebody_has_stepped(self, optimizer: Any, *_: Any) -> None:
        self._stepped.append(optimizer)

    def _has_stepped(self, optimizer: Any, *_: Any) -> None:
        self._rate_of_step = kept_as_it_is(self.rate)
        # A fused optimizer is called in any case, and leaves the step out on the device.
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = False if found_inf is None else found_inf != 0


def _is_unscaled(scaler: Any, optimizer: Optimizer) -> bool:
    """Tells whether a scaler has taken its factor back already; a fused optimizer does so in its step."""
    states = getattr(scaler, "_per_optimizer_states", None)  # nothing public tells
    if states is None:
        return not getattr(optimizer, "_step_supports_amp_scaling", False)
    return states.get(id(optimizer), {}).get("stage") is OptState.UNSCALED


def _stored(gradient: Tensor) -> Tensor:
    """Returns the numbers of a gradient, of a sparse one those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
