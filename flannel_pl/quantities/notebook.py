"""What every recording has: the six tensors of the notebook, as far as they are wanted, and five numbers."""

from collections.abc import Collection

import torch

from flannel_pl.quantities.parameters import (
    OPTIMIZER_STATE,
    OptimizerState,
    ParameterGradients,
    ParameterValues,
)
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.quantities.returned import Logits, Loss
from flannel_pl.quantities.stepping import GradientNorm, LearningRate, Skipped, StepNumber

_WANTED: dict[str, Quantity] = {
    "embeddings": ParameterValues("embeddings"),
    "grads": ParameterGradients("grads"),
    **{name: OptimizerState(key, name, owner="Adam") for name, key in OPTIMIZER_STATE.items()},
    "logits": Logits(),
    "losses": Loss("losses", torch.bfloat16, "loss at the weights of the step before, in fewer digits"),
}


def quantities_of(tensors: Collection[str]) -> list[Quantity]:
    """Returns the quantities of a recording, in the order of its columns.

    Args:
        tensors: Which of `RECORDABLE` are wanted.
    """
    wanted = [quantity for name, quantity in _WANTED.items() if name in tensors]
    loss = Loss("losses_f32", torch.float32, "loss at the weights of the step before")
    return [StepNumber(), *wanted, loss, LearningRate(), GradientNorm(), Skipped()]
