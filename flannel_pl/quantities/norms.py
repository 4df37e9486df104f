"""Norms of every parameter: of its gradient, of its values, and of what a step adds to it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from flannel_pl.quantities.naming import without_wrapper
from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class GradientNorms(Quantity):
    """Euclidean norm of each parameter's gradient before clipping, (P) float32; 0 where there is none.

    Args:
        name: Of the column.
    """

    def __init__(self, name: str = "gradient_norms") -> None:
        self.name = name

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [_column(self.name, subject, "before_step", "norm of the gradient of each parameter")]

    @override
    def before_step(self, row: Row, step: Step) -> None:
        parameters = parameters_of(step.subject)
        row[self.name] = _norms([step.optimizing.gradient(one) for one in parameters.values()])


class UpdateNorms(Quantity):
    """Euclidean norms of what a step adds to each parameter, and of the parameter after it, (P) float32.

    Args:
        name: Of the columns: `name` and `name/values`.
    """

    def __init__(self, name: str = "update_norms") -> None:
        self.name = name
        self._before: list[Tensor] = []

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [
            _column(
                self.name, subject, "after_step", "norm of what the step adds to each parameter", row0="zero"
            ),
            _column(
                f"{self.name}/values",
                subject,
                "after_step",
                "norm of each parameter after the step",
                row0="initial",
            ),
        ]

    @override
    def first_row(self, row: Row, subject: Subject) -> None:
        row[f"{self.name}/values"] = _norms([one.detach() for one in parameters_of(subject).values()])

    @override
    def before_step(self, row: Row, step: Step) -> None:
        self._before = [one.detach().clone() for one in parameters_of(step.subject).values()]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        after = [one.detach() for one in parameters_of(step.subject).values()]
        moved = [_wide(now) - _wide(then) for now, then in zip(after, self._before, strict=True)]
        self._before = []
        row[self.name] = _norms(moved)
        row[f"{self.name}/values"] = _norms(after)


def parameters_of(subject: Subject) -> Mapping[str, Tensor]:
    """Returns name -> each parameter, also one that is not trained yet; a tied one once."""
    named = subject.module.named_parameters()
    return {without_wrapper(name): one for name, one in named if one.is_floating_point()}


def _column(name: str, subject: Subject, taken: str, meaning: str, row0: str = "nan") -> Column:
    names = list(parameters_of(subject))
    like = torch.empty(len(names), dtype=torch.float32, device="meta")
    return Column(
        name,
        ("parameter",),
        like=like,
        row0=row0,  # type: ignore[arg-type]
        taken=taken,  # type: ignore[arg-type]
        meaning=meaning,
        labels={"parameter": names},
    )


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the norm of each tensor, float32."""
    return torch.stack([one.float() for one in torch._foreach_norm([_wide(one) for one in tensors])])


def _wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32; in float64 if it is, where two that are near differ in no fewer digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
