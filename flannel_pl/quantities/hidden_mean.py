"""The mean hidden state: where the model is, on average, when it predicts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.quantities.quantity import Column, Quantity, Values
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class HiddenMean(Quantity):
    """Mean over batch and positions of what a module gives, (D) float32, and how far that is spread.

    The spread is the root of the mean squared distance from the mean, over all dimensions. Of several forward
    passes in a step the row has the mean of both, by their numbers of positions.

    Args:
        of: Name of the module; None = the last layer norm.
        name: Of the columns: `name` and `name/spread`.
    """

    def __init__(self, of: str | None = None, name: str = "hidden_mean") -> None:
        self.of, self.name = of, name

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        name, width = width_of(subject, self.of)
        self.outputs_of = [name]
        like = torch.empty(width, dtype=torch.float32, device="meta")
        where = f"of {name} over batch and positions"
        spread = f"{self.name}/spread"
        return [
            Column(self.name, ("D",), like=like, taken="forward", meaning=f"mean {where}"),
            Column(spread, dtype=torch.float32, taken="forward", meaning=f"spread {where}"),
        ]

    @override
    def forward(self, values: Values, step: Step) -> None:
        hidden_ND = positions(step, self.outputs_of[0])
        mean_D = hidden_ND.mean(dim=0)
        values.mean(self.name, mean_D, len(hidden_ND))
        squares = (hidden_ND - mean_D).square().sum()
        values.mean(f"{self.name}/spread", (squares / len(hidden_ND)).sqrt(), len(hidden_ND))


NOT_HEARD = (
    "nothing, since it was not called (a plain loop is heard while the model is in training mode, and "
    "gradients are computed)"
)
"""What a module gave in a forward pass that nobody heard."""


def width_of(subject: Subject, name: str | None) -> tuple[str, int]:
    """Returns the full name of a module, and the size of the last axis of what it gives.

    Args:
        subject: What is trained.
        name: Of the module, or its end; None = the last layer norm.

    Raises:
        UserError: If there is no such module, or its weight does not tell.
    """
    named = {full: module for full, module in subject.module.named_modules() if full}
    if name is None:
        norms = [full for full, module in named.items() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
        if not norms:
            last = next(reversed(named), "none")
            raise UserError(f"the model has no layer norm; say of which module, e.g. {last}")
        full, module = norms[-1], named[norms[-1]]
    else:
        module = subject.module_of(name)
        full = next(full for full, one in named.items() if one is module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        kind = type(module).__name__
        raise UserError(f"{full} is a {kind}, whose width no weight tells; name a norm or a linear layer")
    is_embedding = isinstance(module, nn.Embedding)
    return full, weight.shape[-1 if is_embedding else 0]


def positions(step: Step, module: str) -> Tensor:
    """Returns what a module gave in this pass, a row for each position, (N, D) float32."""
    outputs = step.outputs.get(module, ())
    if not outputs or not all(isinstance(output, Tensor) for output in outputs):
        got = type(outputs[0]).__name__ if outputs else NOT_HEARD
        raise UserError(f"{module} gave {got} in a forward pass, expected a tensor (..., D)")
    rows = [output.detach().flatten(0, -2).float() for output in outputs]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
