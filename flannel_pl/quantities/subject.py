"""What is trained, as quantities see it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.naming import find_named


@dataclass(frozen=True)
class Subject:
    """What is trained, before its first step."""

    parameter: Tensor
    """The recorded parameter, e.g. (V, D); on the device `meta` where only a plan is made."""

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

    has_bare_names: bool = True
    """Whether the parameter is recorded under the notebook's names; else it only leads the further ones."""

    @property
    def has_rows(self) -> bool:
        """Whether the parameter has a row (D) for each of V tokens, or of whatever else its rows are."""
        return self.has_bare_names and self.parameter.ndim == 2

    def module_of(self, name: str) -> nn.Module:
        """Returns a submodule.

        Args:
            name: As in `named_modules()`, or the end of such a name that only one has.

        Raises:
            UserError: If there is none, or several.
        """
        there: dict[str, nn.Module] = dict(self.module.named_modules())
        found = {id(one): one for full, one in there.items() if full == name or full.endswith(f".{name}")}
        if name in there or len(found) == 1:
            return there[name] if name in there else next(iter(found.values()))
        nearest = difflib.get_close_matches(name, list(there), n=3, cutoff=0.0)
        wrong = "has several modules" if found else "has no module"
        raise UserError(f"the model {wrong} {name!r}; expected one of, e.g., {', '.join(nearest)}")

    def find(self, name: str) -> Tensor:
        """Returns a parameter.

        Args:
            name: Of a parameter or buffer, see `flannel_pl.quantities.naming.find_named`.

        Raises:
            UserError: If there is none, or several.
        """
        return find_named(self.module, name)[1]
