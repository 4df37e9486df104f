"""A step of training at the moments at which quantities look at it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from flannel_pl.quantities.subject import Subject


class Optimizing(Protocol):
    """What the optimizer does to parameters in a step."""

    def gradient(self, of: Tensor | None = None) -> Tensor:
        """Returns a parameter's gradient (None: the recorded one's), dense and not scaled; or zeros."""

    def gradient_norm(self) -> Tensor:
        """Returns the norm of the gradients of all parameters that the optimizer holds."""

    def state(
        self, key: str, parameter: Tensor | None = None, *, of: str = ..., wanted: str | None = None
    ) -> Tensor:
        """Returns what the optimizer keeps of a parameter (None: the recorded one); zeros before it does.

        `of` and `wanted` name parameter and column in messages.
        """


@dataclass
class Step:
    """One optimizer step, as far as it has come."""

    number: int
    """Counted from 1."""

    subject: Subject
    optimizing: Optimizing
    rate: float | Tensor
    """Learning rate of the recorded parameter; NaN if the optimizer has none for it."""

    loss: Tensor | None = None
    """Mean over the batches that count, at the weights of the step before; NaN if none does. None until it is
    known."""

    logits_V: Tensor | None = None
    """What the first batch that counts returned as `logits`, (V,)."""

    skipped: bool | Tensor = False
    """Whether the optimizer has left the step out."""

    means: Mapping[str, Tensor] = field(default_factory=dict)
    """After the step: name -> what was given to `Values.mean` in its passes; empty if none counts."""

    batch: Any = None
    """In a forward pass: what `training_step` was given."""

    returned: Any = None
    """In a forward pass: what it returned."""

    outputs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """In a forward pass: name of each module in `outputs_of` -> what it gave at each of its calls."""
