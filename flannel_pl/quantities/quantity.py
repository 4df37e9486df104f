"""What a quantity is: one thing that is taken of every step, e.g. a gradient, or a row of logits.

It says which columns it fills, and is called at each moment of a step with the row to fill. Whatever a
recording has comes from one; the recorder is a loop over them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject

Taken = Literal["forward", "before_step", "after_step"]


@dataclass(frozen=True)
class Column:
    """What a quantity declares of a column that it fills, a tensor of shape (R, ...)."""

    name: str
    dims: tuple[str, ...] = ()
    """Names of a row's axes. `V` are the recorded tokens: give all of them, the recorder picks."""

    dtype: torch.dtype | None = None
    """Type to store; None = that of `like`."""

    like: Tensor | None = None
    """Has the shape of a row, with all tokens; on any device, `meta` too. None for a number, or, with `dims`,
    if only its first value will tell: then the file is made at the end of the first recorded step."""

    row0: Literal["initial", "zero", "nan"] = "nan"
    """What the row of the initial state holds; `initial` is filled in by `Quantity.first_row`."""

    taken: Taken | Literal[""] = "after_step"
    """When in a step; empty for what says something of the row itself."""

    meaning: str = ""
    """One line in words."""

    parameter: str = ""
    """Which parameter it is of, if it is of one."""

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """Axis -> the name of each place along it."""

    @property
    def has_unknown_size(self) -> bool:
        """Whether only its first value will tell its size."""
        return bool(self.dims) and self.like is None


class Row(Protocol):
    """One row of a recording, to be filled by name. Nothing in it waits for a device."""

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        """Copies a value into a column; once per row."""


class Values(Protocol):
    """What is taken during the forward passes of a step, see `flannel_pl.quantities.core.passes`."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Takes the value of a column in this pass; the row gets that of the first pass that counts."""

    def mean(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        """Adds to the weighted mean of a column over the passes, and over the pieces of each."""


class Quantity:
    """One thing that is taken of every step. Override `columns`, and the moments it is taken at.

    Attributes:
        outputs_of: Names of submodules whose outputs it wants to see in `forward`, as in `named_modules()`.
        pieces_of: Names of streams that it wants to see in `piece`, e.g. log_probs: what a loss in pieces
            never has as a whole. The module says in `streams` which it has.
        every_step: Whether it is called also in steps that have no row, because it remembers something.

    Example:
        >>> class Spread(Quantity):
        ...     def columns(self, subject):
        ...         return [Column("spread", dtype=torch.float32, meaning="how far weights are apart")]
        ...
        ...     def after_step(self, row, step):
        ...         row["spread"] = step.subject.parameter.float().std()
    """

    outputs_of: Sequence[str] = ()
    pieces_of: Sequence[str] = ()
    every_step: bool = False

    def columns(self, subject: Subject) -> Sequence[Column]:
        """Returns the columns that it fills. Called before there is an optimizer, too: to plan."""
        raise NotImplementedError

    def first_row(self, row: Row, subject: Subject) -> None:
        """Fills what row 0 has of the initial state."""

    def piece(self, values: Values, step: Step, name: str, value: Tensor) -> None:
        """Looks at a piece of a stream; it is overwritten afterwards. Forward passes only."""

    def forward(self, values: Values, step: Step) -> None:
        """Takes what a forward pass of training gave: `step.batch`, `step.returned`, `step.outputs`."""

    def before_step(self, row: Row, step: Step) -> None:
        """Takes what is there before the optimizer steps: gradients are whole, and not clipped."""

    def after_step(self, row: Row, step: Step) -> None:
        """Takes what is there once the optimizer has stepped."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what it remembers from step to step: tensors and plain values. It goes into checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with what `state_dict` returned."""
