"""What is trained, as quantities see it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from flannel_pl.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """What is trained, before its first step."""

    parameter: Tensor
    """The recorded parameter, (V, D); on the device `meta` where only a plan is made."""

    parameter_name: str
    """As in `named_parameters()`."""

    own_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Column -> the type that it has in training, where that is not the parameter's."""

    may_skip: bool = False
    """Whether something decides from step to step that the optimizer does not step."""

    token_sets: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> token ids, int64, on the parameter's device; what the data call dead, live, ..."""

    module: nn.Module = field(default_factory=nn.Module)
    """What is trained; its parameters are on the device `meta` where only a plan is made."""

    optimizer: torch.optim.Optimizer | None = None
    """None where only a plan is made."""

    def module_of(self, name: str) -> nn.Module:
        """Returns a submodule.

        Args:
            name: As in `named_modules()`, or the end of such a name that only one has.

        Raises:
            UserError: If there is none, or several.
        """
        found: nn.Module = _only("module", name, dict(self.module.named_modules()))
        return found

    def find(self, name: str) -> Tensor:
        """Returns a parameter.

        Args:
            name: As in `named_parameters()`, of a tied one any of its names; or the end of such a name that
                only one has.

        Raises:
            UserError: If there is none, or several.
        """
        return _only("parameter", name, dict(self.module.named_parameters(remove_duplicate=False)))


def _only(what: str, name: str, there: Mapping[str, T]) -> T:
    found = (
        {id(there[name]): there[name]}
        if name in there
        else {id(one): one for full, one in there.items() if full.endswith(f".{name}")}
    )
    if len(found) == 1:
        return next(iter(found.values()))
    nearest = difflib.get_close_matches(name, list(there), n=3, cutoff=0.0)
    wrong = "has several" if found else "has no"
    raise UserError(f"the model {wrong} {what} {name!r}; expected one of, e.g., {', '.join(nearest)}")
