"""What every recording has: the six tensors of the notebook, as far as they are wanted, and five numbers."""

from collections.abc import Collection, Sequence

import torch

from flannel_pl.quantities.parameters import OptimizerState, ParameterGradients, ParameterValues
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.quantities.returned import Logits, Loss
from flannel_pl.quantities.stepping import GradientNorm, LearningRate, Skipped, StepNumber


def quantities_of(tensors: Collection[str], states: Sequence[OptimizerState]) -> list[Quantity]:
    """Returns the quantities of a recording, in the order of its columns.

    Args:
        tensors: Which of `RECORDABLE` are wanted.
        states: What is recorded of the optimizer's state.
    """
    loss = "loss at the weights of the step before"
    found: list[Quantity] = [StepNumber()]
    if "embeddings" in tensors:
        found.append(ParameterValues("embeddings"))
    if "grads" in tensors:
        found.append(ParameterGradients("grads"))
    found += states
    if "logits" in tensors:
        found.append(Logits())
    if "losses" in tensors:
        found.append(Loss("losses", torch.bfloat16, f"{loss}, in fewer digits"))
    return [*found, Loss("losses_f32", torch.float32, loss), LearningRate(), GradientNorm(), Skipped()]
