"""A model and data of one's own: a small network that tells two rings of points apart.

    cd examples/own_model && flannel-pl fit --config rings.yaml

Shape suffixes: B batch, N points.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn


class RingsModel(LightningModule):
    """Two layers and dropout, trained with SGD.

    Args:
        width: Of the hidden layer.
        learning_rate: Of every step.
        dropout: Share of hidden values that a step leaves out.
    """

    def __init__(self, width: int = 16, learning_rate: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        points_B2, rings_B = batch
        loss = nn.functional.cross_entropy(self.net(points_B2), rings_B)
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


class Batches:
    """Batches of an epoch in an order that depends on seed and epoch only, from wherever training stands."""

    def __init__(self, points_N2: Tensor, rings_N: Tensor, *, batch_size: int, seed: int) -> None:
        self.points_N2, self.rings_N = points_N2, rings_N
        self.batch_size, self.seed = batch_size, seed
        self.next_batch = 0  # counted over all epochs

    def __len__(self) -> int:
        return len(self.points_N2) // self.batch_size

    def __iter__(self):
        while True:
            epoch, number = divmod(self.next_batch, len(self))
            order_N = torch.randperm(
                len(self.points_N2), generator=torch.Generator().manual_seed(self.seed + epoch)
            )
            chosen_B = order_N[number * self.batch_size : (number + 1) * self.batch_size]
            self.next_batch += 1
            yield self.points_N2[chosen_B], self.rings_N[chosen_B]
            if self.next_batch % len(self) == 0:
                return

    # With these two in a checkpoint, a run that was interrupted goes on with the batch that comes next.
    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]


class RingsData(LightningDataModule):
    """Points on two rings, with noise.

    Args:
        num_points: N.
        batch_size: B.
        noise: Standard deviation of a point's distance from its ring.
    """

    def __init__(self, num_points: int = 256, batch_size: int = 32, noise: float = 0.1) -> None:
        super().__init__()
        self.num_points, self.batch_size, self.noise = num_points, batch_size, noise

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)  # the same points for every run
        rings_N = torch.arange(self.num_points) % 2
        angles_N = torch.rand(self.num_points, generator=generator) * 2 * torch.pi
        radii_N = 1 + rings_N + torch.randn(self.num_points, generator=generator) * self.noise
        self.points_N2 = torch.stack([radii_N * angles_N.cos(), radii_N * angles_N.sin()], dim=1)
        self.rings_N = rings_N
        self.seed = torch.initial_seed()  # that of the run

    def train_dataloader(self) -> Batches:
        return Batches(self.points_N2, self.rings_N, batch_size=self.batch_size, seed=self.seed)
