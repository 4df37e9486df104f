"""What a file says of its columns: of each its type, axes, when it is taken, and what it means.

The list stands once in a file's metadata, for all runs; of a run there is only what differs. Whoever reads
goes by it, and shows and keeps a column that it has never heard of. Files of schema 1 have no list: what
their columns were follows from their names.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flannel_pl.paths import run_folder
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec


@dataclass(frozen=True)
class ColumnSpec:
    """One per-row tensor of a recording: shape (R, *sizes)."""

    name: str
    dtype: str
    """Code in a safetensors header, e.g. BF16."""

    sizes: tuple[int, ...] = ()
    """Shape of a row."""

    dims: tuple[str, ...] = ()
    """Names of a row's axes: V recorded tokens, D width, or any other."""

    taken: str = ""
    """When in a step: forward, before_step or after_step; empty for what says something of the row itself."""

    row0: str = ""
    """What the row of the initial state holds: initial (the value), zero, or nan."""

    meaning: str = ""
    """One line in words."""

    parameter: str = ""
    """Which parameter it is of, as in `named_parameters()`; empty if it is of none."""

    quantity: str = ""
    """Import path of the quantity that takes it."""

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """Axis -> the name of each place along it, where they have names."""

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.sizes) * NUMPY_DTYPES[self.dtype].itemsize

    @property
    def said(self) -> dict[str, Any]:
        """What the metadata say of it, without its name and without what is empty."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "name"}
        values["labels"] = {axis: list(names) for axis, names in self.labels.items()}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in lists.items() if value or name in ("dims", "sizes")}

    @classmethod
    def of(cls, name: str, said: Mapping[str, Any]) -> "ColumnSpec":
        """Returns what metadata say of a column; they are checked where they are read."""
        known = {one.name for one in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            key: tuple(x) if isinstance(x, list) else x for key, x in said.items() if key in known
        }
        labels = {axis: tuple(names) for axis, names in said.get("labels", {}).items()}
        return cls(**{"dtype": "", **values, "name": name, "labels": labels})


def run_prefix(index: int | None) -> str:
    """Returns what the keys of a run begin with where a file has several, e.g. run_3_."""
    return f"{run_folder(index)}_"


def columns_of(
    file: Mapping[str, Any], run: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> dict[str, ColumnSpec]:
    """Returns the columns of a run, by name, in the order of its checksums.

    Args:
        file: What a file says of itself.
        run: What it says of that run: the same, unless the file has several.
        specs: Name of each of the run's tensors, without prefix -> dtype and shape.
    """
    said = said_columns(file, run)
    return {
        name: ColumnSpec.of(name, said[name]) if name in said else column_of_schema_1(name, specs[name])
        for name in run.get("checksum_columns", ())
        if name in said or name in specs
    }


def said_columns(file: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name -> what is said of each column of a run; empty in a file of schema 1."""
    shared, own = file.get("columns", {}), run.get("columns", {})
    names = [name for name in run.get("checksum_columns", ()) if name in shared or name in own]
    return {name: {**shared.get(name, {}), **own.get(name, {})} for name in names}


def share_columns(runs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Takes what is said of their columns out of what is said of several runs.

    Args:
        runs: Of each what its own recording says, with all of its columns.

    Returns:
        Name -> what is said of a column; and what is said of each run, with only what differs from that.
    """
    shared: dict[str, Any] = {}
    sayings = []
    for run in runs:
        own = run.get("columns", {})
        shared |= {name: said for name, said in own.items() if name not in shared}
        others = {name: _differing(said, shared[name]) for name, said in own.items() if said != shared[name]}
        rest = {key: value for key, value in run.items() if key != "columns"}
        sayings.append({**rest, "columns": others} if others else rest)
    return shared, sayings


def _differing(said: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"dims": [], "sizes": [], "labels": {}}
    keys = said.keys() | shared.keys()
    values = {key: said.get(key, empty.get(key, "")) for key in sorted(keys)}
    return {key: value for key, value in values.items() if value != shared.get(key)}


def with_columns(run: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Returns what a run's own recording says, with its columns also if that is of schema 1.

    Args:
        run: What it says.
        specs: Name of each of its tensors, without prefix -> dtype and shape.
    """
    return {**run, "columns": {name: one.said for name, one in columns_of(run, run, specs).items()}}


_VD, _V = ("V", "D"), ("V",)

NOTEBOOK: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "recorded_steps": ((), "", "zero", "number of the optimizer step"),
    "embeddings": (_VD, "after_step", "initial", "token embedding after the step"),
    "grads": (_VD, "before_step", "zero", "gradient at the weights of the step before, not clipped"),
    "momentum": (_VD, "after_step", "zero", "Adam's exp_avg after the step"),
    "variance": (_VD, "after_step", "zero", "Adam's exp_avg_sq after the step"),
    "logits": (_V, "forward", "zero", "first sequence, last position, at the weights of the step before"),
    "losses": ((), "forward", "nan", "loss at the weights of the step before, in fewer digits"),
    "losses_f32": ((), "forward", "nan", "loss at the weights of the step before"),
    "learning_rates": ((), "before_step", "nan", "rate that the step uses for the parameter"),
    "grad_norms": ((), "before_step", "nan", "norm of all gradients that the optimizer holds, not clipped"),
    "skipped": ((), "after_step", "zero", "whether the optimizer left the step out"),
}
"""Name -> axes, moment, first row and meaning of the columns that schema 1 had."""


def notebook_columns(
    dtypes: Mapping[str, str], sizes: Mapping[str, int], *, parameter: str = ""
) -> tuple[ColumnSpec, ...]:
    """Returns some of these, in their order.

    Args:
        dtypes: Name of each that is wanted -> the code of its dtype.
        sizes: Axis -> its size.
        parameter: Name of the recorded parameter.
    """
    columns = []
    for name, (dims, taken, row0, meaning) in NOTEBOOK.items():
        if name in dtypes:
            row_shape = tuple(sizes[dim] for dim in dims)
            of = parameter if "D" in dims or name == "learning_rates" else ""
            columns.append(ColumnSpec(name, dtypes[name], row_shape, dims, taken, row0, meaning, of))
    return tuple(columns)


def column_of_schema_1(name: str, spec: TensorSpec) -> ColumnSpec:
    """Returns what a column is of which only name, dtype and shape are known.

    Args:
        name: Its name.
        spec: Its dtype and shape (R, ...).
    """
    sizes = tuple(spec.shape[1:])
    dims, taken, row0, meaning = NOTEBOOK.get(name, (tuple(map(str, sizes)), "", "", ""))
    if len(dims) != len(sizes):
        dims = tuple(map(str, sizes))
    return ColumnSpec(name, spec.dtype, sizes, dims, taken, row0, meaning)
