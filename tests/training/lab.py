"""Models and data as somebody else might write them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typing_extensions import override

N = 24


def points() -> tuple[Tensor, Tensor]:
    x_N2 = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    return x_N2, (x_N2[:, 0] > 0).long()


class Net(LightningModule):
    """Two layers with dropout.

    Args:
        width: Of the hidden layer.
        learning_rate: Of Adam.
        kill_at: Kills its process in this step, once.
        killed: A file that is made then; empty = nothing is killed.
    """

    def __init__(
        self, width: int = 4, learning_rate: float = 0.1, kill_at: int = 11, killed: str = ""
    ) -> None:
        super().__init__()
        self.learning_rate, self.kill_at, self.killed = learning_rate, kill_at, killed
        self.net = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.3), nn.Tanh(), nn.Linear(width, 2))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.killed and self.kill_at == self.global_step and not Path(self.killed).exists():
            Path(self.killed).touch()
            time.sleep(1)  # in which a checkpoint comes to the disk
            os.kill(os.getpid(), signal.SIGKILL)
        loss: Tensor = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss.detach())
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Validated(Net):
    """Draws numbers when it is validated."""

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3)


class NeedsWidth(Net):
    def __init__(self, width: int) -> None:
        super().__init__(width)


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Net):
    @override
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]


class NoOptimizer(Net):
    @override
    def configure_optimizers(self) -> Any:
        return None


class ManyLosses(Net):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


class Detached(Net):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx).detach()


class Factored(Net):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adafactor(self.parameters(), lr=self.learning_rate)


class Hungry(Net):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.eaten = torch.empty(2**46, device=self.device)
        return super().training_step(batch, batch_idx)


class Leaves(Net):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        sys.exit(3)


class SeveralTimes(Net):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class Broken(Net):
    def __init__(self) -> None:
        super().__init__()
        raise KeyError("no such layer")


class TinyLM(LightningModule):
    """An embedding and its transpose, on the default data."""

    def __init__(self, vocab_size: int = 7, hidden_dim: int = 999, learning_rate: Any = None) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab_size, 8)  # whatever hidden_dim says

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits_BTV = self.emb(batch["input_ids"]) @ self.emb.weight.T
        loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch["labels"].flatten())
        return {"loss": loss, "logits": logits_BTV[0, -1].detach()}

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Keeps(Net):
    """Puts into checkpoints what cannot be loaded as plain values."""

    def __init__(self, path: Path = Path("x"), killed: str = "") -> None:
        super().__init__(killed=killed)
        self.save_hyperparameters()


class Loader:
    """Batches in an order of their own, from wherever training stands."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.next = batch_size, 0
        self.seed = torch.initial_seed()

    def __len__(self) -> int:
        return N // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        while True:
            epoch, number = divmod(self.next, len(self))
            order_N = torch.randperm(N, generator=torch.Generator().manual_seed(self.seed + epoch))
            chosen_B = order_N[number * self.batch_size :][: self.batch_size]
            self.next += 1
            yield tuple(one[chosen_B] for one in points())
            if self.next % len(self) == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    @override
    def train_dataloader(self) -> Any:
        return Loader(self.batch_size)


class Stateless(Data):
    """Keeps no position."""

    @override
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*points()), batch_size=self.batch_size, shuffle=True)


class UnsizedLoader:
    """Keeps a position, and says of no epoch how long it is."""

    def __init__(self, batch_size: int) -> None:
        loader = Loader(batch_size)
        self.loader = loader
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Unsized(Data):
    @override
    def train_dataloader(self) -> Any:
        return UnsizedLoader(self.batch_size)


class WithValidation(Data):
    @override
    def val_dataloader(self) -> Any:
        return Loader(N)


class Points(IterableDataset[Any]):
    @override
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*points(), strict=True)


class Endless(Data):
    """Says of no epoch how long it is."""

    @override
    def train_dataloader(self) -> Any:
        return DataLoader(Points(), batch_size=self.batch_size)
