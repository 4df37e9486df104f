"""The logits of chosen sequences and positions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.quantities.hidden_mean import NOT_HEARD
from flannel_pl.quantities.quantity import Column, Quantity, Values
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject

STREAM = "logits"


class LogitsAt(Quantity):
    """Logits at some places of a step's first batch that counts, (P, V), of the type that they have.

    Args:
        places: Of each place its index along every axis of the logits but the last, e.g. [[0, -1], [3, 0]]
            for sequence 0's last position and sequence 3's first, of (B, T, V).
        of: Name of the module that gives the logits, as such or as `logits` of what it returns; None = the
            module's stream of them.
        name: Of the column.
    """

    def __init__(
        self, places: Sequence[Sequence[int]], of: str | None = None, name: str = "logits_at"
    ) -> None:
        self.places, self.of, self.name = [tuple(place) for place in places], of, name
        if not self.places or not all(self.places) or len({len(place) for place in self.places}) > 1:
            raise UserError(
                f"LogitsAt has the places {[list(place) for place in self.places]}, expected one or more, "
                "each with an index along every axis but the last, e.g. [[0, -1]]"
            )
        if of is None:
            self.pieces_of = (STREAM,)

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        if self.of is not None:
            subject.module_of(self.of)
            named = dict(subject.module.named_modules())
            self.outputs_of = [full for full, one in named.items() if one is subject.module_of(self.of)][:1]
        like = None
        if self.of is None and "logits" in subject.own_dtypes and subject.has_rows:
            size = (len(self.places), len(subject.parameter))
            like = torch.empty(size, dtype=subject.own_dtypes["logits"], device="meta")
        axes = ("place", "V" if subject.has_rows else "logit")
        words = [", ".join(map(str, place)) for place in self.places]
        meaning = "logits at chosen places of the first batch, at the weights of the step before"
        return [Column(self.name, axes, like=like, taken="forward", labels={"place": words}, meaning=meaning)]

    @override
    def piece(self, values: Values, step: Step, name: str, value: Tensor) -> None:
        values[self.name] = self._picked(value)

    @override
    def forward(self, values: Values, step: Step) -> None:
        if self.of is None:
            return
        outputs = step.outputs.get(self.outputs_of[0], ())
        logits = getattr(outputs[0], "logits", outputs[0]) if outputs else None
        if not isinstance(logits, Tensor):
            got = type(logits).__name__ if outputs else NOT_HEARD
            raise UserError(f"{self.of} gave {got} in a forward pass, expected logits (..., V)")
        values[self.name] = self._picked(logits)

    def _picked(self, logits: Tensor) -> Tensor:
        """Returns the places' logits."""
        if logits.ndim != len(self.places[0]) + 1:
            raise UserError(
                f"LogitsAt has the places {[list(place) for place in self.places]}, but the logits have "
                f"shape {tuple(logits.shape)}; give each place an index along every axis but the last"
            )
        outside = [
            list(place)
            for place in self.places
            if any(not -size <= index < size for index, size in zip(place, logits.shape, strict=False))
        ]
        if outside:
            raise UserError(
                f"LogitsAt has the places {outside}, which logits of shape {tuple(logits.shape)} do not have"
            )
        return torch.stack([logits.detach()[place] for place in self.places])
