"""A small net and a plain loop that is recorded, for tests of what else goes on in a loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from flannel_pl import Recorder
from flannel_pl.quantities import Column, Quantity

V, D = 12, 4
TABLE = {"E": "table.weight"}


class Bigrams(nn.Module):
    """Returns logits; offers its log-probabilities as a stream."""

    streams = ("log_probs",)

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, D, sparse=sparse)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V)

    @override
    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.table(tokens_BT)))
        publish: Any = getattr(self, "publish", None)
        if publish is not None and "log_probs" in publish.names:
            publish("log_probs", torch.log_softmax(logits.detach().flatten(0, 1), dim=-1))
        return logits


def windows(number: int = 4) -> Tensor:
    return torch.randint(0, 10, (number, 4, 6), generator=torch.Generator().manual_seed(1))


def loss_of(net: Any, window_BT: Tensor) -> Tensor:
    logits = net(window_BT[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(logits.float(), window_BT[:, 1:].flatten())


def sgd(net: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, **options)


def nothing(number: int) -> None:
    """Does nothing."""


def record(
    folder: Path,
    net: Any,
    optimizer: Any = None,
    *,
    number: int = 4,
    before: Callable[[int], object] = nothing,
    **options: Any,
) -> None:
    """Records a loop of some steps; `before` is called before the optimizer steps."""
    optimizer = optimizer or sgd(net)
    several = optimizer if isinstance(optimizer, list) else [optimizer]
    with Recorder(folder, net, optimizer, **{"parameters": TABLE, **options}) as recorder:
        for step, window_BT in enumerate(windows(number)):
            for one in several:
                one.zero_grad()
            loss: Any = loss_of(net, window_BT)
            loss.backward()
            recorder.before_step()
            before(step)
            for one in several:
                one.step()
            recorder.after_step(loss=loss)


class Calls(Quantity):
    """How often the norm gave something in the passes of a step."""

    outputs_of = ("norm",)

    @override
    def columns(self, subject: Any) -> Any:
        return [Column("calls", dtype=torch.float32, taken="forward")]

    @override
    def forward(self, values: Any, step: Any) -> None:
        values.mean("calls", torch.tensor(float(len(step.outputs["norm"]))))


class Counts(Quantity):
    """Counts steps, and remembers how many."""

    every_step = True

    def __init__(self, start: int = 0) -> None:
        self.count = start

    @override
    def columns(self, subject: Any) -> Any:
        return [Column("count", dtype=torch.int64, row0="zero")]

    @override
    def after_step(self, row: Any, step: Any) -> None:
        self.count += 1
        row["count"] = self.count

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
