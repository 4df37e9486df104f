"""Where the generators of random numbers stand: part of a checkpoint, and nothing that a validation moves.

So what a module draws in a step, e.g. for dropout, is the same whether or not a run was interrupted before.
"""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

_KEY = "flannel_pl_random"


def _states() -> dict[str, Any]:
    """Returns where torch's, numpy's and Python's generators stand, in types that any checkpoint may have."""
    cuda: Any = torch.cuda
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda.is_initialized() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def _set(states: dict[str, Any]) -> None:
    kind, keys, *rest = states["numpy"]
    version, words, gauss = states["python"]
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((version, tuple(words), gauss))


class RandomNumbers(Callback):
    """Keeps the generators' states in checkpoints, and validations out of them."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the states down."""
        checkpoint[_KEY] = _states()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes note of them; an earlier version has written none."""
        self._loaded = checkpoint.get(_KEY)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on where they stood, whatever was drawn until here."""
        if self._loaded is not None:
            _set(self._loaded)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes note of where they stand."""
        self._before = _states()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts them back."""
        if self._before is not None:
            _set(self._before)
