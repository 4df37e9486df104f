"""What an optimizer keeps of a parameter from step to step."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class OptimizerState(Quantity):
    """One of the tensors that the optimizer keeps of the recorded parameter; zeros until it is there.

    Args:
        key: Its name in the optimizer's state, e.g. exp_avg.
        name: What the column is called.
        owner: Whose it is, for the column's meaning.
    """

    def __init__(self, key: str, name: str, *, owner: str = "the optimizer") -> None:
        self.key, self.name, self._owner = key, name, owner

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        own = subject.own_dtypes.get(self.name, subject.parameter.dtype)
        return [
            Column(
                self.name,
                ("V", "D"),
                like=torch.empty(subject.parameter.shape, dtype=own, device="meta"),
                row0="zero",
                meaning=f"{self._owner}'s {self.key} after the step",
                parameter=subject.parameter_name,
            )
        ]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        of = step.subject.parameter_name
        row[self.name] = step.optimizing.state(self.key, of=of, wanted=self.name)
