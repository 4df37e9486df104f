"""What is trained: models, their data, their optimizers."""

from flannel_pl.models.adamw import AdamW
from flannel_pl.models.tiny_lm import TinyLM

__all__ = ["AdamW", "TinyLM"]
