"""What a script may ask for, in a plain loop as with `transformers.Trainer`."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.config import RecorderConfig, as_config, by_alias
from flannel_pl.quantities.core.tokens import as_token_sets
from flannel_pl.quantities.naming import is_pattern, what_there_is
from flannel_pl.quantities.quantity import Quantity


@dataclass(frozen=True, kw_only=True)
class RecorderOptions:
    """What to record; the defaults are all values, gradients and whatever the optimizer keeps, unrounded."""

    parameters: Mapping[str, str] | str | None = None
    """Alias -> name, or pattern, of each parameter; the first has the bare names `embeddings`, `grads`, ...
    One name is enough where there is only one; `all`, or a pattern, has each under its own name. None: the
    model has only one."""

    tensors: Sequence[str] | None = None
    """Which of embeddings (the values), grads, momentum, variance, logits and losses; None = all there are,
    and what else the optimizer keeps, under its own key."""

    dtypes: Mapping[str, str] | None = None
    """Column -> type to record it in; its own loses nothing."""

    tokens: str = "all"
    """Which rows of the first parameter: all, the name of a token set, or the path of a file with ids."""

    token_sets: Mapping[str, Any] = field(default_factory=dict)
    """Name -> token ids: a list, an array or a tensor of integers."""

    every_n_steps: int = 1
    quantities: Sequence[Quantity] | None = None
    """What to record besides, see `flannel_pl.quantities`."""

    seed: int | None = None
    """For the file: with which seed this was trained."""

    overwrite: bool = False
    """Whether an earlier recording in the folder may go."""

    def __post_init__(self) -> None:
        """Takes lists and tensors of token ids, too, and numbers of numpy's.

        Raises:
            UserError: If they are none.
        """
        for name in ("token_sets", "dtypes"):
            if not isinstance(getattr(self, name) or {}, Mapping):
                raise UserError(f"{name} is {getattr(self, name)!r}, expected a dict")
        for name in ("every_n_steps", "seed"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "token_sets", as_token_sets(self.token_sets))

    def config(self, model: nn.Module) -> RecorderConfig:
        """Returns what a recorder is asked for.

        Raises:
            UserError: If that cannot be, or no parameter is named.
        """
        parameter, others = _divided(self.parameters, model)
        return as_config(
            parameter,
            tensors=self.tensors,
            dtypes=self.dtypes,
            tokens=self.tokens,
            every_n_steps=self.every_n_steps,
            quantities=self.quantities,
            parameters=others,
        )


def whole(name: str, given: Any) -> Any:
    """Returns a whole number, of Python's own; None as it is.

    Args:
        name: Of the argument, for the message.
        given: What was given for it.

    Raises:
        UserError: If it is something else, or larger than 64 bits.
    """
    try:
        number = None if given is None else operator.index(given)
    except TypeError:
        raise UserError(f"{name} is {given!r}, expected a whole number") from None
    if number is not None and not -(2**63) <= number < 2**63:
        raise UserError(f"{name} is {given}, expected a number of at most 64 bits")
    return number


def _divided(
    parameters: Mapping[str, str] | str | None, model: nn.Module
) -> tuple[str | None, Mapping[str, str]]:
    """Returns the name of the first parameter, if it is to have the bare names, and the others by alias."""
    if not parameters:
        names = [name for name, _ in model.named_parameters()]
        if len(names) != 1:
            raise UserError(
                f"no parameter is named to record; the model has {what_there_is(model)}. Name one or more, "
                'e.g. parameters={"E": "emb.weight"}, or every one (parameters="all")'
            )
        return names[0], {}
    wanted = by_alias(parameters)
    alias, first = next(iter(wanted.items()))
    if is_pattern(first):
        return None, wanted
    del wanted[alias]
    return first, wanted
