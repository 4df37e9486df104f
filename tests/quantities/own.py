"""A model with a norm, and quantities of one's own."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from flannel_pl.quantities import Column, Quantity, Row, Step, Subject, Values

V, D, B = 12, 3, 4


class Normed(LightningModule):
    """Predicts a token from the one before it, through a layer norm. A batch of all zeros does not count."""

    streams = ("log_probs",)
    publish: Any = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(V, D)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V)

    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        logits_BV: Tensor = self.head(self.norm(self.table(tokens_B)))
        if self.publish is not None:  # in validation, too
            for piece in logits_BV.detach().log_softmax(dim=1).split(3):  # type: ignore[no-untyped-call]
                self.publish("log_probs", piece)
        return logits_BV

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor] | None:
        logits_BV = self(batch[:, 0])
        if not batch.any():
            return None
        loss = nn.functional.cross_entropy(logits_BV, batch[:, 1])
        return {"loss": loss, "logits": logits_BV[0].detach()}

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch[:, 0] * 0)

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def batches(number: int, *, empty: Sequence[int] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(1, V, (B, 2), generator=generator) for _ in range(number)]
    return [torch.zeros_like(one) if index in empty else one for index, one in enumerate(drawn)]


class Batches(Quantity):
    """How many tokens were seen so far, and the first token of the step's first batch."""

    every_step = True

    def __init__(self, factor: int = 1) -> None:
        self.factor, self.num_seen = factor, 0

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        return [
            Column("seen", dtype=torch.int64, row0="zero", meaning="tokens seen so far"),
            Column("first", dtype=torch.float32, taken="forward", meaning="first token of the first batch"),
        ]

    @override
    def forward(self, values: Values, step: Step) -> None:
        batch = step.batch["input_ids"] if isinstance(step.batch, dict) else step.batch
        self.num_seen += self.factor * batch.numel()
        values["first"] = batch.flatten()[0].float()

    @override
    def after_step(self, row: Row, step: Step) -> None:
        row["seen"] = self.num_seen

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"num_seen": self.num_seen}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_seen = state["num_seen"]


class Unmade(Batches):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError("division")
