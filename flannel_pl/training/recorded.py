"""The parameter that is recorded: found by its name, and watched, so that no row tells of another one.

A callback may put another object in its place, or change it after its row was taken: then the next gradient
belongs to weights that no row has.
"""

from collections.abc import Iterator

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parameter import is_lazy

from flannel_pl.errors import UserError
from flannel_pl.quantities.naming import resolve
from flannel_pl.quantities.row import dtype_name

_LATER_HOOKS = (
    *("on_train_epoch_end", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad"),
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start"),
    *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_before_backward"),
    *("on_after_backward", "on_save_checkpoint", "on_before_optimizer_step"),
)
"""Where a callback may change weights after their row was taken and before their gradient is."""


class RecordedParameter:
    """One parameter of a module.

    Args:
        module: What is trained.
        name: As in `named_parameters()`; of a tied one, any of its names.
        has_tokens: Whether it must have a row for each token, for logits or because some are recorded.

    Raises:
        UserError: If there is none, or it cannot be recorded.
    """

    def __init__(self, module: LightningModule, name: str, *, has_tokens: bool = False) -> None:
        self.name = name
        self.tensor = _find(module, name)
        if has_tokens and self.tensor.ndim != 2:
            shape = tuple(self.tensor.shape)
            raise UserError(
                f"{name} has shape {shape}, expected two dimensions (tokens, width), as logits and "
                "recorder.tokens need; leave logits out of recorder.tensors, and record all tokens"
            )
        self._module = module
        self._seen: Tensor | None = None
        self._seen_at = (0, 0)

    def refuse_replaced(self) -> None:
        """Refuses to go on with an object that the module does not train any more.

        Raises:
            UserError: If the module has another parameter by that name now.
        """
        try:
            # From the root: any module on the way may be another one by now.
            is_there = self._module.get_parameter(self.name) is self.tensor
        except AttributeError:
            is_there = False
        if not is_there:
            raise UserError(
                f"{self.name} is another object than when training started: something has replaced it, or a "
                "module that it is in. To record it, change its values in place (parameter.copy_ within "
                "torch.no_grad())"
            )

    def take(self) -> None:
        """Has to be called when its values are put into a row."""
        self._seen = self.tensor.detach().clone(memory_format=torch.contiguous_format)
        self._seen_at = self._where()

    def refuse_changed(self, trainer: Trainer, *, step: int, on_device: bool) -> None:
        """Refuses a gradient at weights that are not those of the last row.

        On the CPU their bits are compared. Elsewhere that would make the host wait, so they are only where
        torch has counted a change.

        Args:
            trainer: Whose callbacks are named.
            step: The step that the gradient is of.
            on_device: Whether the host does not compute the weights.

        Raises:
            UserError: If something has changed them since `take`.
        """
        seen, self._seen = self._seen, None
        is_untouched = on_device and self._where() == self._seen_at
        if seen is None or is_untouched or _has_same_bits(seen, self.tensor):
            return
        who = ", ".join(_later_callbacks(trainer)) or (
            "the module itself (an Embedding with max_norm is one, its own on_train_batch_end another)"
        )
        raise UserError(
            f"{self.name} was changed after its row of step {step - 1} was taken, so the gradient of step "
            f"{step}, or the step itself, belongs to weights that no row has; it may be the doing of {who}. "
            "What a callback (not the module) does in on_train_batch_end comes before the recorder; do it "
            "there, or leave it out"
        )

    def _where(self) -> tuple[int, int]:
        return self.tensor._version, self.tensor.data_ptr()


def _find(module: LightningModule, name: str) -> Tensor:
    parameter = resolve(module, name)[1]
    if is_lazy(parameter):
        raise UserError(
            f"{name} has no shape yet, because it comes with the first batch; pass one through the module "
            "before training"
        )
    if not parameter.is_floating_point():
        raise UserError(
            f"{name} is of type {dtype_name(parameter)}, expected a real floating "
            "point type: a recording has no other"
        )
    return parameter


def _has_same_bits(one: Tensor, other: Tensor) -> bool:
    # Flat, since what is one number has no axis to be seen as bytes.
    return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (one, other)))


def _later_callbacks(trainer: Trainer) -> Iterator[str]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        is_ours = type(callback).__module__.startswith(("lightning.", "flannel_pl."))
        if not is_ours and any(is_overridden(hook, callback, parent=Callback) for hook in _LATER_HOOKS):
            yield type(callback).__name__
