"""A Lightning Trainer, recorded: python examples/lightning_callback.py [FOLDER]."""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import flannel_pl

NUM_TOKENS, WIDTH = 200, 16


class Bigram(LightningModule):
    """Predicts each token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(NUM_TOKENS, WIDTH), nn.Linear(WIDTH, NUM_TOKENS))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[:-1]), batch[1:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


torch.manual_seed(0)
tokens = torch.randint(NUM_TOKENS // 2, (50, 64))  # the other half never occurs
folder = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning"
recorder = flannel_pl.StepRecorder(folder, "net.0.weight")
Trainer(max_epochs=1, callbacks=[recorder], logger=False, enable_checkpointing=False).fit(
    Bigram(), torch.utils.data.DataLoader(tokens, batch_size=None)
)
with flannel_pl.open_recording(folder) as recording:
    moved = abs(recording.run(0).embeddings[-1] - recording.run(0).embeddings[0]).mean(axis=1)
    print(f"seen tokens moved {moved[:100].mean():.3f}, others {moved[100:].mean():.3f}")
