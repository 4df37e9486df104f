"""What is asked of a recorder, and the quantities that follow from it."""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.live import check_live
from flannel_pl.quantities.naming import find_named
from flannel_pl.quantities.notebook import quantities_of
from flannel_pl.quantities.parameters import (
    OF_PARAMETER,
    OPTIMIZER_STATE,
    further_parameters,
    leading,
    of_first,
)
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.recording.formats.schema import RECORDABLE, check_wishes

Kept = Callable[[Tensor], Mapping[str, str]]
"""Of a parameter: column -> the key of what is recorded of its optimizer's state."""


@dataclass(frozen=True)
class RecorderConfig:
    """What is asked of a recorder; refuses what it never can do."""

    parameter: str | None
    """Name of the first parameter, whose columns have the bare names; None = none has."""

    tensors: tuple[str, ...] | None = None
    """Which of `RECORDABLE`; None = all that there are, and whatever else the optimizer keeps."""

    may_have_logits: bool = True
    """Whether None has logits where a batch returns them; of an experiment a plan is to know the size."""

    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Column -> the type to record it in."""

    tokens: str = "all"
    every_n_steps: int = 1
    quantities: tuple[Quantity, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Alias -> name or pattern of further parameters."""

    live: tuple[str, ...] = ()
    """Metrics that are measured of rows while training goes on."""

    def __post_init__(self) -> None:
        """Refuses what a user can get wrong before there is a module.

        Raises:
            UserError: Names all that is wrong.
        """
        if not self.wanted:
            raise UserError(f"recorder.tensors is empty, expected some of {', '.join(RECORDABLE)}")
        check_wishes(self.wanted, self.dtypes, {}, max_steps=1, every_n_steps=self.every_n_steps)
        check_live(self.live, self.wanted)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Which of the notebook's tensors, as far as they are there."""
        if self.tensors is not None:
            return self.tensors
        has_logits = self.may_have_logits and self.parameter is not None
        return tuple(name for name in RECORDABLE if name != "logits" or has_logits)

    @property
    def needs_rows(self) -> bool:
        """Whether the parameter has to have a row for each token."""
        return self.tokens != "all" or "logits" in (self.tensors or ())

    def leading(self, module: nn.Module) -> str:
        """Returns the full name of the parameter whose learning rate and device are those of a recording.

        Args:
            module: What is trained.

        Raises:
            UserError: If nothing is to be recorded, or a name stands for nothing.
        """
        name = find_named(module, leading(module, self.parameter, self.parameters))[0]
        if self.needs_rows and self.parameter is None:
            raise UserError(
                "logits and recorder.tokens need a parameter with a row for each token; name it in "
                "recorder.parameter, or leave logits out of recorder.tensors, and record all tokens"
            )
        return name

    def moments(self, of: Tensor) -> dict[str, str]:
        """Returns which of Adam's moments are wanted, see `Kept`."""
        return {name: key for name, key in OPTIMIZER_STATE.items() if name in self.wanted}

    def all_quantities(self, module: nn.Module, first: Tensor, kept: Kept | None = None) -> list[Quantity]:
        """Returns everything that is recorded, in the order of the columns.

        Args:
            module: What is trained.
            first: The first parameter.
            kept: What is recorded of the optimizer's state; None = Adam's moments, as far as wanted.
        """
        kept, is_named = kept or self.moments, self.parameter is not None
        bare = [name for name in self.wanted if is_named or name not in OF_PARAMETER]
        return [
            *quantities_of(bare, of_first(kept(first)) if is_named else []),
            *further_parameters(
                module, self.parameters, besides=self.parameter, tensors=self.wanted, kept=kept
            ),
            *self.quantities,
        ]


def as_config(
    parameter: str | None,
    *,
    tensors: Sequence[str] | None,
    dtypes: Mapping[str, str] | None,
    tokens: str,
    every_n_steps: int,
    quantities: Sequence[Quantity] | None,
    parameters: Mapping[str, str] | str | None,
    live: Sequence[str] | None = None,
    in_experiment: bool = False,
) -> RecorderConfig:
    """Returns what a script or an experiment has asked for; one name is a list of one.

    Raises:
        UserError: If something of it is of another kind.
    """
    if not isinstance(parameter, str | None):
        several = "; several are parameters={...}" if isinstance(parameter, Mapping) else ""
        raise UserError(
            f"parameter is of type {type(parameter).__name__}, expected its name as in named_parameters(), "
            f'e.g. "emb.weight"{several}'
        )
    if not isinstance(tokens, str | os.PathLike):
        raise UserError(
            f"tokens is {tokens!r}, expected all, the name of a token set, or the path of a file with ids; a "
            'list of ids has a name in token_sets, e.g. token_sets={"mine": [3, 5]}, tokens="mine"'
        )
    if not isinstance(dtypes, Mapping | None):
        raise UserError(f"dtypes is {dtypes!r}, expected a dict from column to type")
    return RecorderConfig(
        parameter,
        None if tensors is None else _several("tensors", tensors),
        not in_experiment,
        {name: str(dtype).removeprefix("torch.") for name, dtype in (dtypes or {}).items()},
        str(tokens),
        whole("every_n_steps", every_n_steps, is_needed=True),
        _quantities(quantities),
        by_alias(parameters),
        _several("live", live or ()),
    )


def whole(name: str, given: Any, *, is_needed: bool = False) -> Any:
    """Returns a whole number, of Python's own; None as it is, unless it is needed.

    Args:
        name: Of the argument, for the message.
        given: What was given for it.
        is_needed: Whether None is none.

    Raises:
        UserError: If it is something else, or larger than 64 bits.
    """
    try:
        number = None if given is None and not is_needed else operator.index(given)
    except TypeError:
        raise UserError(f"{name} is {given!r}, expected a whole number") from None
    if number is not None and not -(2**63) <= number < 2**63:
        raise UserError(f"{name} is {given}, expected a number of at most 64 bits")
    return number


def by_alias(parameters: Any) -> dict[str, str]:
    """Returns alias -> name of parameters; one name is its own alias.

    Raises:
        UserError: If it is neither a name nor such a mapping.
    """
    if isinstance(parameters, str):
        return {parameters: parameters}
    if parameters is None:
        return {}
    found = repr(parameters)
    if isinstance(parameters, Mapping):
        wrong = [pair for pair in parameters.items() if not all(isinstance(name, str) for name in pair)]
        found = "".join(f"{alias!r} for a {type(name).__name__}" for alias, name in wrong[:1])
    if found:
        raise UserError(
            f"parameters is {found}, expected an alias for each name, e.g. "
            '{"E": "emb.weight", "bias": "head.bias"}; or one name or pattern'
        )
    return dict(parameters)


def _quantities(given: Any) -> tuple[Quantity, ...]:
    several = (given,) if isinstance(given, Quantity | str | type) else tuple(given or ())
    for one in several:
        if not isinstance(one, Quantity):
            made = f"; make one of it, {one.__name__}()" if isinstance(one, type) else ""
            raise UserError(f"quantities has {one!r}, expected objects, e.g. [HiddenMean()]{made}")
    return several


def _several(option: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{option} is {given!r}, expected a list of names")
    return names
