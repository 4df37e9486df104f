"""Small recordings with weights of one's choice, in the notebook's own format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Array = np.ndarray[Any, Any]


def save_recording(
    path: Path,
    runs: Sequence[Array],
    *,
    dead: Sequence[int] = (),
    dtype: torch.dtype = torch.bfloat16,
    steps: Sequence[int] | None = None,
    losses: Sequence[float] | None = None,
    masks: bool = True,
    recorded_tokens: Sequence[int] | None = None,
) -> Path:
    """Writes a recording.

    Args:
        path: The file.
        runs: Weights of each run, (R, V, D).
        dead: Ids of the dead tokens among all of the vocabulary.
        dtype: Type in which they are stored.
        steps: Step of each row; 0, 1, 2, ... if None.
        losses: Loss of each row; NaN and then 1 if None.
        masks: Whether the file has masks.
        recorded_tokens: Vocabulary ids of the V tokens, of 2 V in all; None if they are the vocabulary.

    Returns:
        `path`.
    """
    num_tokens = runs[0].shape[1]
    tensors: dict[str, torch.Tensor] = {}
    for index, W_RVD in enumerate(runs):
        num_rows = len(W_RVD)
        tensors[f"run_{index}_embeddings"] = torch.from_numpy(W_RVD).to(dtype).contiguous()
        tensors[f"run_{index}_recorded_steps"] = torch.tensor(range(num_rows) if steps is None else steps)
        loss = [float("nan"), *[1.0] * (num_rows - 1)] if losses is None else losses
        tensors[f"run_{index}_losses_f32"] = torch.tensor(loss, dtype=torch.float32)
        if recorded_tokens is not None:
            tensors[f"run_{index}_recorded_tokens"] = torch.tensor(recorded_tokens)
    if masks:
        vocab_size = num_tokens if recorded_tokens is None else 2 * num_tokens
        dead_mask = torch.zeros(vocab_size, dtype=torch.bool)
        dead_mask[list(dead)] = True
        tensors |= {"dead_mask": dead_mask, "live_mask": ~dead_mask}
    tensors["base_seed"] = torch.tensor(42)
    save_file(tensors, path)
    return path


def walk(seed: int, *, num_rows: int = 7, num_tokens: int = 9, dim: int = 4, scale: float = 0.02) -> Array:
    """Returns a random walk, rounded to bfloat16, with a token that stops and one that never moves."""
    draw = np.random.default_rng(seed)
    W_RVD = draw.normal(0, scale, (num_rows, num_tokens, dim)).astype(np.float32).cumsum(axis=0)
    W_RVD[num_rows // 2 :, 0] = W_RVD[num_rows // 2, 0]
    W_RVD[:, 1] = W_RVD[0, 1]
    rounded: Array = torch.from_numpy(W_RVD).bfloat16().float().numpy()
    return rounded
