"""What the module returned of a step's batches: the loss, and a row of logits."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class Logits(Quantity):
    """One row of logits: those of the first batch that counts; NaN if none does."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        own = subject.own_dtypes.get("logits")  # else the first batch tells
        like = None if own is None else torch.empty(subject.parameter.shape[:1], dtype=own, device="meta")
        meaning = "first sequence, last position, at the weights of the step before"
        return [Column("logits", ("V",), like=like, row0="zero", taken="forward", meaning=meaning)]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        row["logits"] = float("nan") if step.logits_V is None else step.logits_V


class Loss(Quantity):
    """The mean loss of a step's batches, at the weights of the step before.

    Args:
        name: What the column is called.
        dtype: Type to store; rounded to it, whatever the loss has.
        meaning: In words.
    """

    def __init__(self, name: str, dtype: torch.dtype, meaning: str) -> None:
        self.name, self._dtype, self._meaning = name, dtype, meaning

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [Column(self.name, dtype=self._dtype, taken="forward", meaning=self._meaning)]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        assert step.loss is not None
        row[self.name] = step.loss
