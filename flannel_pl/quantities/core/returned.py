"""What the batches of one step give: their loss, and a row of logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flannel_pl.errors import UserError


@dataclass(frozen=True)
class Giving:
    """How loss and logits come to the recorder, in words."""

    gave: str
    """Who did what, e.g. `training_step returned`."""

    give: str
    """What one does, e.g. `return`."""

    loss: str
    logits: str
    """What one gives, as code."""


FROM_TRAINING_STEP = Giving(
    "training_step returned",
    "return",
    '{"loss": loss, ...}',
    '{"loss": loss, "logits": logits[0, -1].detach()}',
)


class Returned:
    """Gathers what the batches of a step return.

    Args:
        parameter: Name of the recorded parameter, for messages.
        num_logits: V, one logit for each of its rows; None if logits are not recorded.
        logits_are_optional: Whether logits of another shape are passed over.
        giving: How it comes here, for messages.
    """

    def __init__(
        self,
        parameter: str,
        num_logits: int | None,
        *,
        logits_are_optional: bool = False,
        giving: Giving = FROM_TRAINING_STEP,
    ) -> None:
        self._parameter, self._num_logits = parameter, num_logits
        self._logits_are_optional, self._giving = logits_are_optional, giving
        self.clear()

    def clear(self) -> None:
        """Begins the next step."""
        self._loss: Tensor | None = None
        self._num_batches = 0
        self.logits_V: Tensor | None = None
        """Logits of the first batch that counts, (V,); None if there are none."""

    def add(self, outputs: Any) -> bool:
        """Takes what one batch returned. None is a batch that does not count.

        Returns:
            Whether it counts.

        Raises:
            UserError: If it is not what can be recorded.
        """
        if outputs is None or outputs == {}:
            return False
        giving = self._giving
        if not isinstance(outputs, dict) or "loss" not in outputs:
            raise UserError(f"{giving.gave} no loss to record; {giving.give} {giving.loss} from every batch")
        loss = outputs["loss"].detach()
        if loss.is_complex():
            raise UserError(f"{giving.gave} a loss of type {loss.dtype}, expected a real number")
        if loss.numel() != 1:
            raise UserError(
                f"{giving.gave} a loss of shape {tuple(loss.shape)}, expected one number; {giving.give} "
                "its mean"
            )
        # A sum of a few bfloat16 has not even two digits.
        self._loss = loss.reshape(()) if self._loss is None else _wide(self._loss) + _wide(loss.reshape(()))
        self._num_batches += 1
        if self._num_logits is not None and self.logits_V is None:
            # A copy: what is given may be a view of the logits of all positions, and the step's next batch
            # needs the memory.
            logits_V = self._fitting(outputs) if self._logits_are_optional else self._checked(outputs)
            self.logits_V = None if logits_V is None else logits_V.detach().clone()
        return True

    @property
    def is_empty(self) -> bool:
        """Whether no batch counts so far."""
        return self._loss is None

    def loss(self, divided_by: int | None) -> Tensor:
        """Returns the mean loss of the batches that count; NaN if there are none.

        Args:
            divided_by: By how many each loss is divided already; None if so that their sum is the mean.
        """
        if self._loss is None:
            return torch.full((), float("nan"), device="cpu")
        if divided_by in (None, self._num_batches):
            return self._loss
        # The last step of an epoch may have had fewer batches, and not all may count.
        if divided_by == 1:
            return self._loss / self._num_batches
        return self._loss * (divided_by / self._num_batches)

    def _fitting(self, outputs: dict[str, Any]) -> Tensor | None:
        shape = getattr(outputs.get("logits"), "shape", None)
        is_missing = "logits" not in outputs or (shape is not None and shape != (self._num_logits,))
        return None if is_missing else self._checked(outputs)

    def _checked(self, outputs: dict[str, Any]) -> Tensor:
        giving = self._giving
        if "logits" not in outputs:
            raise UserError(
                f"recorder.tensors has 'logits', but {giving.gave} none; {giving.give} {giving.logits} or "
                "leave them out of recorder.tensors"
            )
        logits_V, gave, give = outputs["logits"], giving.gave, giving.give
        if not isinstance(logits_V, Tensor) or not logits_V.is_floating_point():
            got = logits_V.dtype if isinstance(logits_V, Tensor) else type(logits_V).__name__
            raise UserError(
                f"{gave} logits of type {str(got).removeprefix('torch.')}, expected a tensor of a real "
                f"floating point type; {give} such, or leave them out of recorder.tensors"
            )
        if logits_V.shape != (self._num_logits,):
            raise UserError(
                f"{gave} logits of shape {tuple(logits_V.shape)}, expected {(self._num_logits,)}: one for "
                f"every row of {self._parameter}; {give} those of one position, or leave them out of "
                "recorder.tensors"
            )
        return logits_V


def _wide(loss: Tensor) -> Tensor:
    return loss.float() if loss.dtype in (torch.bfloat16, torch.float16) else loss
