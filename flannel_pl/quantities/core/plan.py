"""What a recording is going to have: its quantities, their columns, and the types of what they take."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.columns import declared_columns, refuse_aliases, torch_dtypes
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.optimizers import refuse_optimizers
from flannel_pl.quantities.core.optimizing import OptimizerWatch
from flannel_pl.quantities.core.row import dtype_name
from flannel_pl.quantities.core.tokens import token_tensors
from flannel_pl.quantities.core.training import Training
from flannel_pl.quantities.core.watched import RecordedParameter
from flannel_pl.quantities.core.watching import check_logged, check_measurable
from flannel_pl.quantities.naming import find_named, is_pattern
from flannel_pl.quantities.parameters import OPTIMIZER_STATE, OfParameter, OptimizerState
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.returned import Logits
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.formats.columns import ColumnSpec, columns_of
from flannel_pl.recording.formats.files import Header
from flannel_pl.recording.formats.schema import RECORDABLE, SCHEMA_VERSION, SKIPPED, check_wishes
from flannel_pl.recording.writing.ring import TORCH_DTYPES

_ADAMS = tuple(OPTIMIZER_STATE.values())


@dataclass(frozen=True)
class Begun:
    """What an unfinished recording says that is gone on with."""

    columns: Mapping[str, ColumnSpec]
    said: Mapping[str, Any]
    """Its metadata."""

    @classmethod
    def of(cls, header: Header, key_prefix: str) -> "Begun":
        """Returns what its header says."""
        specs = {name.removeprefix(key_prefix): spec for name, spec in header.tensors.items()}
        return cls(columns_of(header.flannel, header.flannel, specs), header.flannel)


@dataclass(frozen=True)
class RecordingPlan:
    """Everything that is recorded of a training."""

    subject: Subject
    quantities: list[Quantity]
    declared: dict[str, tuple[Quantity, Column]]
    own_dtypes: dict[str, str]
    """Column -> the type that it has in training, as the file says it."""

    begun: Begun | None
    """The unfinished recording that is gone on with."""

    version: int
    """Of the file format."""

    optional: Collection[str]
    """Columns that are left out if the first step does not fill them."""


def plan_recording(
    config: RecorderConfig,
    training: Training,
    watch: OptimizerWatch,
    first: RecordedParameter,
    begun: Begun | None,
) -> RecordingPlan:
    """Asks the quantities for their columns.

    Args:
        config: What is asked for.
        training: What trains.
        watch: What its optimizers do.
        first: The first parameter.
        begun: The unfinished recording that is gone on with.

    Raises:
        UserError: If something of it cannot be recorded.
    """
    refuse_optimizers(training.module, training.optimizers, _with_state(config, training.module, first))
    takes_what_there_is = config.tensors is None
    if begun is None:
        own_dtypes = _own_dtypes(config, training, watch, first, others_too=takes_what_there_is)
        may_skip, version = training.may_skip, SCHEMA_VERSION
    else:  # one of an earlier version does not know of some of these
        own_dtypes, version = begun.said.get("own_dtypes", {}), begun.said.get("schema", SCHEMA_VERSION)
        may_skip = SKIPPED in begun.columns
    _check_types(config, own_dtypes)
    check_logged(config, training.log_every_n_steps)
    check_measurable(config, first.tensor.shape, own=own_dtypes.get("embeddings"))
    # An earlier version does not say what it has rounded to bfloat16.
    types = own_dtypes if own_dtypes or begun is None else dict.fromkeys(RECORDABLE, "bfloat16")
    subject = Subject(
        first.tensor,
        first.name,
        torch_dtypes(types),
        may_skip,
        token_tensors(training.token_sets, first.tensor.device) if config.quantities else {},
        training.module,
        training.optimizers[0],
        has_bare_names=config.parameter is not None,
    )
    for quantity in config.quantities:
        if isinstance(quantity, OptimizerState):
            tensor = quantity.tensor(subject)
            quantity.part = watch.parts(tensor).get(quantity.key)
            if quantity.part is None:
                watch.kept_dtypes({quantity.column: quantity.key}, tensor, of=quantity.name(subject))
    kept = _kept(config, watch, first.tensor, goes_on=begun is not None)
    quantities = config.all_quantities(training.module, first.tensor, kept)
    if begun is not None and takes_what_there_is:
        quantities = [one for one in quantities if not _is_missing(one, begun.columns)]
    declared = declared_columns(quantities, subject)
    if begun is None:
        refuse_aliases(config.parameters, declared)
    else:
        declared = {name: (one, _sized(column, begun.columns)) for name, (one, column) in declared.items()}
    _refuse_unknown_types(config, declared)
    optional = ("logits",) if takes_what_there_is and "logits" not in config.dtypes else ()
    return RecordingPlan(subject, quantities, declared, own_dtypes, begun, version, optional)


def _with_state(
    config: RecorderConfig, module: nn.Module, first: RecordedParameter
) -> dict[str, Tensor] | None:
    """Returns the parameters that are recorded, by their names, with what an optimizer keeps of them."""
    if not config.moments(first.tensor):
        return None
    names = [name for name in config.parameters.values() if not is_pattern(name)]
    first_one = {} if config.parameter is None else {first.name: first.tensor}
    return first_one | dict(find_named(module, name) for name in names)


def _check_types(config: RecorderConfig, own_dtypes: Mapping[str, str]) -> None:
    own = {name: dtype for name, dtype in own_dtypes.items() if name in config.wanted}
    check_wishes(config.wanted, config.dtypes, own, max_steps=1, every_n_steps=config.every_n_steps)


def _own_dtypes(
    config: RecorderConfig,
    training: Training,
    watch: OptimizerWatch,
    first: RecordedParameter,
    *,
    others_too: bool,
) -> dict[str, str]:
    """Returns in which type each tensor is; refuses moments that are asked for and never kept."""
    if config.parameter is None:
        return {}
    own = dict.fromkeys(("embeddings", "grads"), dtype_name(first.tensor))
    if training.logits_dtype is not None:
        own["logits"] = str(training.logits_dtype).removeprefix("torch.")
    moments = config.moments(first.tensor)
    if others_too:
        moments = {name: key for name, key in moments.items() if not watch.never_keeps(key, first.tensor)}
        kept = watch.kept(first.tensor) or {}
        own |= {key: str(dtype).removeprefix("torch.") for key, dtype in kept.items() if key not in _ADAMS}
    return own | watch.kept_dtypes(moments, first.tensor, of=first.name)


def _kept(
    config: RecorderConfig, watch: OptimizerWatch, first: Tensor, *, goes_on: bool
) -> Callable[[Tensor], dict[str, str]]:
    """Returns what tells which of an optimizer's state is recorded, see `config.Kept`."""
    takes_what_there_is = config.tensors is None

    def kept(tensor: Tensor) -> dict[str, str]:
        moments = config.moments(tensor)
        # What is never kept was refused, if it was asked for; what was begun with decides on going on.
        if not goes_on if takes_what_there_is else tensor is not first:
            moments = {name: key for name, key in moments.items() if not watch.never_keeps(key, tensor)}
        others = [key for key in watch.kept(tensor) or {} if key not in _ADAMS] if takes_what_there_is else []
        return moments | {key: key for key in others}

    return kept


def _is_missing(quantity: Quantity, columns: Collection[str]) -> bool:
    name = quantity.column if isinstance(quantity, OfParameter) else "logits"
    return isinstance(quantity, OfParameter | Logits) and name not in columns


def _sized(column: Column, begun: Mapping[str, ColumnSpec]) -> Column:
    """Returns a column with the size that an unfinished file says, where only a first value would tell."""
    if not column.has_unknown_size or column.name not in begun:
        return column
    spec = begun[column.name]
    like = torch.empty(spec.sizes, dtype=TORCH_DTYPES[spec.dtype], device="meta")
    return dataclasses.replace(column, like=like)


def _refuse_unknown_types(config: RecorderConfig, declared: Collection[str]) -> None:
    """Refuses a type for a column that nobody declares."""
    for name in config.dtypes.keys() - set(declared):
        nearest = difflib.get_close_matches(name, declared, n=3)
        raise UserError(
            f"recorder.dtypes has {name!r}, which is no column of this recording; "
            f"{'did you mean ' + ', '.join(nearest) if nearest else 'it has ' + ', '.join(declared)}?"
        )
