"""Which tokens the model is near to, on average, when it predicts."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.quantities.hidden_mean import positions, width_of
from flannel_pl.quantities.quantity import Column, Quantity, Row, Values
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class TopTokens(Quantity):
    """The k tokens whose rows of the recorded parameter have the largest product with the mean hidden state.

    Both are at the weights of the step before. Where no batch of a step counts, there is none: -1.

    Args:
        k: How many; the first is the nearest. At most the number of tokens.
        of: Name of the module that gives the hidden state; None = the last layer norm.
        name: Of the columns: `name` (k) int64, -1 where there is none, and `name/products` (k) float32.
    """

    def __init__(self, k: int = 10, of: str | None = None, name: str = "top_tokens") -> None:
        self.k, self.of, self.name = k, of, name

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        if not subject.has_rows:
            raise UserError(
                "TopTokens needs a recorded parameter with a row for each token; name it in "
                "recorder.parameter"
            )
        module, width = width_of(subject, self.of)
        num_tokens, dim = subject.parameter.shape
        if width != dim or not 1 <= self.k <= num_tokens:
            raise UserError(
                f"TopTokens: {self.k} of {num_tokens} tokens of width {dim}, by what {module} gives, "
                f"of width {width}; expected the same width, and from 1 to all tokens"
            )
        self.outputs_of = [module]
        ids = torch.empty(self.k, dtype=torch.int64, device="meta")
        near, products = f"largest product with the mean of {module}", f"{self.name}/products"
        return [
            Column(self.name, ("rank",), like=ids, row0="zero", meaning=f"tokens with the {near}"),
            Column(products, ("rank",), like=ids.float(), meaning=f"their products: {near}"),
        ]

    @override
    def forward(self, values: Values, step: Step) -> None:
        hidden_ND = positions(step, self.outputs_of[0])
        values.mean(f"{self.name}/state", hidden_ND.mean(dim=0), len(hidden_ND))

    @override
    def before_step(self, row: Row, step: Step) -> None:
        self._W_VD = step.subject.parameter.detach().clone()

    @override
    def after_step(self, row: Row, step: Step) -> None:
        state_D = step.means.get(f"{self.name}/state")
        if state_D is None:
            row[self.name], row[f"{self.name}/products"] = -1, float("nan")
            return
        products, ids = torch.topk(self._W_VD.float() @ state_D, self.k)
        row[self.name], row[f"{self.name}/products"] = ids, products
