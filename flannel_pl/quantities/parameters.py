"""A parameter's values and its gradient."""

from collections.abc import Sequence

from typing_extensions import override

from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class ParameterValues(Quantity):
    """The recorded parameter after each step."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [
            Column(
                "embeddings",
                ("V", "D"),
                like=subject.parameter,
                row0="initial",
                meaning="token embedding after the step",
                parameter=subject.parameter_name,
            )
        ]

    @override
    def first_row(self, row: Row, subject: Subject) -> None:
        row["embeddings"] = subject.parameter

    @override
    def after_step(self, row: Row, step: Step) -> None:
        row["embeddings"] = step.subject.parameter


class ParameterGradients(Quantity):
    """The gradient of the recorded parameter, at the weights of the step before, as it is before clipping."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [
            Column(
                "grads",
                ("V", "D"),
                like=subject.parameter,
                row0="zero",
                taken="before_step",
                meaning="gradient at the weights of the step before, not clipped",
                parameter=subject.parameter_name,
            )
        ]

    @override
    def before_step(self, row: Row, step: Step) -> None:
        row["grads"] = step.optimizing.gradient()
