"""How probable the model holds tokens to be, on average over all positions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.quantities.quantity import Column, Quantity, Row, Values
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject

SUMS = "probability_sums"


class TokenProbability(Quantity):
    """Mean probability over all positions: of each token, (V) float32, and of a set of tokens together.

    It is taken from the sums of probabilities that a module's loss has anyway (`TiedGPT2`'s), else from the
    pieces in which it has log-probabilities, so that nothing of the size of all logits is made once more.

    Args:
        of: Name of a token set, e.g. dead, or None for no such column.
        per_token: Whether there is a column with that of every token.
        name: Of the columns: `name` (V), and `name/SET`.
    """

    pieces_of = ("log_probs",)

    def __init__(
        self, of: str | None = "dead", per_token: bool = True, name: str = "token_probability"
    ) -> None:
        self.of, self.per_token, self.name = of, per_token, name
        if of is None and not per_token:
            raise UserError("TokenProbability of no set and not per token records nothing; give one of them")

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        columns = []
        # The sums cost next to nothing, the logarithms an exponential each.
        has_sums = SUMS in getattr(subject.module, "streams", ())
        self.pieces_of = (SUMS,) if has_sums else ("log_probs",)
        if self.per_token and not subject.has_rows:
            raise UserError(
                "TokenProbability per token needs a recorded parameter with a row for each token; name it in "
                "recorder.parameter, or choose per_token: false"
            )
        if self.per_token:
            like = torch.empty(len(subject.parameter), dtype=torch.float32, device="meta")
            meaning = "mean probability of each token over all positions"
            columns.append(Column(self.name, ("V",), like=like, taken="forward", meaning=meaning))
        if self.of is not None:
            if self.of not in subject.token_sets:
                sets = ", ".join(subject.token_sets) or "none"
                raise UserError(f"TokenProbability of {self.of!r}: the data have the token sets {sets}")
            meaning = f"mean probability of all {self.of} tokens together over all positions"
            columns.append(Column(self._of_set, dtype=torch.float32, taken="forward", meaning=meaning))
        return columns

    @property
    def _of_set(self) -> str:
        return f"{self.name}/{self.of}"

    @override
    def piece(self, values: Values, step: Step, name: str, value: Tensor) -> None:
        # Of all tokens together, the probability of each position is 1.
        num_positions = value.sum().round() if name == SUMS else len(value)
        probability_V = value / num_positions if name == SUMS else value.float().exp().mean(dim=0)
        if self.per_token:
            values.mean(self.name, probability_V, num_positions)
        elif self.of is not None:
            ids = step.subject.token_sets[self.of]
            values.mean(self._of_set, probability_V[ids].sum(), num_positions)

    @override
    def after_step(self, row: Row, step: Step) -> None:
        if self.per_token and self.of is not None and self.name in step.means:
            row[self._of_set] = step.means[self.name][step.subject.token_sets[self.of]].sum()
