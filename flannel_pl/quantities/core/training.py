"""What a recorder is told of a training by the adapter of whatever trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flannel_pl.quantities.core.returned import FROM_TRAINING_STEP, Giving
from flannel_pl.quantities.core.tokens import TokenIds


def _somebody() -> str:
    return "change it before the recorder's after_step, or leave that out"


@dataclass(frozen=True)
class Training:
    """A training at its start."""

    module: nn.Module
    optimizers: Sequence[Optimizer]
    """What steps it; each parameter is held by one of them, or by none."""

    num_steps: int | None
    """How many steps there are going to be, at most; None if nobody knows."""

    step: int = 0
    """After which it goes on; 0 if it begins."""

    token_sets: Mapping[str, TokenIds] = field(default_factory=dict)
    """Name -> token ids, e.g. dead."""

    logits_dtype: torch.dtype | None = None
    """Of the logits that each batch returns, one for each row of the parameter; None if a batch will tell."""

    scaler: Any = None
    """A loss scaler."""

    may_skip: bool = False
    """Whether something decides from step to step that the optimizer does not step."""

    may_change_rate: bool = False
    """Whether the rate may become another between `before_step` and the step."""

    log_every_n_steps: int = 1
    """How often live metrics are measured."""

    has_ended: bool = False
    """Whether it had ended already, and only the file's name was lacking."""

    go_on: str = "go on with it"
    """How an unfinished recording is gone on with, in words."""

    giving: Giving = FROM_TRAINING_STEP
    """How loss and logits come to the recorder."""

    who_changes: Callable[[], str] = _somebody
    """Says who may change weights between a row and the next gradient, and where it would be right."""
