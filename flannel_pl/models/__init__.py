"""What is trained: models, their data, their optimizers."""

from flannel_pl.models.adamw import AdamW

__all__ = ["AdamW"]
