"""What a script may ask for, in a plain loop as with `transformers.Trainer`."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.config import RecorderConfig, as_config, by_alias, whole
from flannel_pl.quantities.core.label import RunLabel
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
        object.__setattr__(self, "seed", whole("seed", self.seed))
        object.__setattr__(self, "token_sets", as_token_sets(self.token_sets))

    @property
    def label(self) -> RunLabel:
        """Which run it is, as far as a script says."""
        named = self.parameters
        alias = {"alias": next(iter(named))} if isinstance(named, Mapping) and named else {}
        return RunLabel(seed=self.seed, metadata=alias)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "RecorderOptions":
        """Returns the options that a script has given.

        Raises:
            UserError: If there is none of that name.
        """
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
                raise UserError(f"{name!r} is no option of a recorder; {hint}")
        return cls(**given)

    def config(self, model: nn.Module) -> RecorderConfig:
        """Returns what a recorder is asked for.

        Raises:
            UserError: If that cannot be, or no parameter is named.
        """
        if not isinstance(model, nn.Module):
            raise UserError(f"model is of type {type(model).__name__}, expected a torch.nn.Module")
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
