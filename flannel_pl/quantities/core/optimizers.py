"""Which optimizers can be recorded: those that train what is recorded, with one gradient per step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flannel_pl.errors import UserError

TELLS = "_optimizer_step_post_hooks"
"""What an optimizer has that tells of its steps."""


def refuse_optimizers(
    module: nn.Module, optimizers: Sequence[Optimizer], recorded: Mapping[str, Tensor] | None
) -> None:
    """Refuses optimizers that do not train what is recorded.

    Args:
        module: What is trained.
        optimizers: What steps it.
        recorded: Name -> parameter, of those that are named to be recorded with what an optimizer keeps of
            them; None if that is recorded of none.

    Raises:
        UserError: If an optimizer takes several gradients per step, or none holds such a parameter, although
            it requires a gradient. One that does not may be given to an optimizer later.
    """
    for one in optimizers:
        if isinstance(one, torch.optim.LBFGS):
            raise UserError(several_gradients(type(one).__name__))
    if recorded is None:
        return
    held = {id(each) for one in optimizers for group in one.param_groups for each in group["params"]}
    parameters = list(module.parameters())
    if any(one.requires_grad for one in parameters) and not any(id(one) in held for one in parameters):
        kinds = " and ".join(dict.fromkeys(type(one).__name__ for one in optimizers))
        raise UserError(
            f"{kinds} holds no parameter of {type(module).__name__}, so it trains another model; make it "
            "from this one's parameters()"
        )
    if idle := [name for name, one in recorded.items() if one.requires_grad and id(one) not in held]:
        raise UserError(
            f"no optimizer of this training holds {' and '.join(idle)}, which requires a gradient, so "
            "nothing would move it; give it to one, and that one to the recorder, or freeze it "
            "(requires_grad_(False)), or record it without what an optimizer keeps: "
            'tensors ["embeddings", "grads", "losses"]'
        )


def several_gradients(kind: str) -> str:
    """Returns why an optimizer of a kind cannot be recorded that takes several gradients per step."""
    return (
        f"{kind} evaluates the gradient several times per step, so there is no one gradient to record; "
        "use an optimizer that does not"
    )


def inner_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that a wrapper of Lightning or accelerate steps; that itself, if it is none."""
    inner = getattr(optimizer, "optimizer", None)
    # One that keeps something of its own is more than a wrapper.
    is_wrapper = isinstance(inner, Optimizer) and (
        not hasattr(optimizer, TELLS) or optimizer.state is inner.state
    )
    return inner if is_wrapper else optimizer
