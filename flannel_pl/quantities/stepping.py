"""How the optimizer steps: its rate, the norm of the gradients, and whether it stepped at all."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class StepNumber(Quantity):
    """The number of the step: of a row that is there it is never the number of another."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        meaning = "number of the optimizer step"
        return [Column("recorded_steps", dtype=torch.int64, row0="zero", taken="", meaning=meaning)]

    @override
    def before_step(self, row: Row, step: Step) -> None:
        row["recorded_steps"] = step.number


class LearningRate(Quantity):
    """The rate that the step uses for the recorded parameter."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [
            Column(
                "learning_rates",
                dtype=torch.float32,
                taken="before_step",
                meaning="rate that the step uses for the parameter",
                parameter=subject.parameter_name,
            )
        ]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        row["learning_rates"] = step.rate  # which somebody may still change before the optimizer steps


class GradientNorm(Quantity):
    """The norm of all gradients that the optimizer holds, before clipping."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        meaning = "norm of all gradients that the optimizer holds, not clipped"
        return [Column("grad_norms", dtype=torch.float32, taken="before_step", meaning=meaning)]

    @override
    def before_step(self, row: Row, step: Step) -> None:
        row["grad_norms"] = step.optimizing.gradient_norm()


class Skipped(Quantity):
    """Whether the optimizer left the step out; no column where it never does."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        meaning = "whether the optimizer left the step out"
        return [Column("skipped", dtype=torch.bool, row0="zero", meaning=meaning)] if subject.may_skip else []

    @override
    def after_step(self, row: Row, step: Step) -> None:
        if step.subject.may_skip:
            row["skipped"] = step.skipped
