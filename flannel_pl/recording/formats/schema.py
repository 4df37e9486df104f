"""The rows and columns of a recording: how many, of which type and shape, and what the file says of them.

Row k of a recording is the state after step t = k * every_n_steps; row 0 is the initial state, before any
step. R is the number of rows, V the number of recorded tokens (all of the vocabulary by default), D the
hidden size. What a column is, its quantity declares; `columns.py` has what follows from the names of the
notebook's. Each is recorded in the type that it has in training,
`losses` in bfloat16, unless another is asked for.

Always there are `recorded_steps`, `losses_f32`, `learning_rates` and `grad_norms`, and `skipped` where a step
can be left out: a loss scaler does so when a gradient is not finite, and a module that overrides
`optimizer_step` may. Such a row has the gradient as it was, weights and moments that did not change, and
zeros for moments that no step has made yet. `checksums` has one xxh3-64 per row and column, over that row's
bytes.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.metadata import dump_metadata, short
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec
from flannel_pl.recording.formats.tokens import has_tokens

SCHEMA_VERSION = 2
"""Raised by every change to the file format, see docs/format.md."""

KNOWN_SCHEMAS = (1, SCHEMA_VERSION)
"""Those that can be read, gathered and gone on with."""

RECORDABLE = ("embeddings", "grads", "momentum", "variance", "logits", "losses")
"""The tensors a user may ask for; the table above says what each is."""

SCALAR_COLUMNS = {"losses_f32": "F32", "learning_rates": "F32", "grad_norms": "F32"}
"""Per-row numbers that every recording has: name -> dtype code."""


def no_batch_counted(loss: Any, grad_norm: Any) -> Any:
    """Tells whether `training_step` returned None for all batches of a step: so none has a loss or gradient.

    Args:
        loss: A number or an array of them, of `losses_f32`.
        grad_norm: Likewise, of `grad_norms`; of a loss that is NaN itself it is NaN, too.
    """
    return (loss != loss) & (grad_norm == 0)


SKIPPED = "skipped"
"""Per-row mark of a step that the optimizer did not take; only there if steps can be skipped."""

RECORDED_TOKENS = "recorded_tokens"
"""Static int64 tensor (V,) with the vocabulary ids of the recorded tokens; only there if they are a
subset."""

ALL_NAMES = ("recorded_steps", *RECORDABLE, *SCALAR_COLUMNS, SKIPPED, "checksums", RECORDED_TOKENS)
"""Every tensor name a run may have."""

CONFIG_SCALARS = {
    "n_steps": "trainer.max_steps",
    "init_scale": "model.init_scale",
    "learning_rate": "model.learning_rate",
    "weight_decay": "model.weight_decay",
    "adam_beta1": "model.adam_beta1",
    "adam_beta2": "model.adam_beta2",
}
"""Scalar of a gathered recording -> the config key it is taken from."""

MASK_NAMES = ("live_mask", "dead_mask", "live_indices", "dead_indices", "token_occurrence_counts")
"""The tensors of a masks file, which a gathered recording carries along."""

EXPERIMENT_TENSORS = ("n_runs", "base_seed", "n_live", "n_dead", *CONFIG_SCALARS, "seeds", *MASK_NAMES)
"""What a gathered recording has besides its runs."""


def experiment_tensors_of(config: Mapping[str, Any], digests: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns which of `EXPERIMENT_TENSORS` a gathered recording has.

    Those of tokens where the data have any; of a model whose class the config names, those of the notebook's
    numbers that are arguments of it.

    Args:
        config: Of the experiment, by group.
        digests: Name of each data file -> the hash of its content.
    """
    absent = set[str]()
    if not has_tokens(config, digests):
        absent |= {"n_live", "n_dead", *MASK_NAMES}
    model = config.get("model", {})
    if "class_path" in model:
        keys = {name: key.removeprefix("model.") for name, key in CONFIG_SCALARS.items() if "model." in key}
        absent |= {name for name, key in keys.items() if type(model.get(key)) not in (int, float)}
    return tuple(name for name in EXPERIMENT_TENSORS if name not in absent)


DTYPE_CODES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16", "float64": "F64"}
"""Dtypes a recorded tensor may have, and their codes in the file."""

_HELD = {"float32": ("bfloat16", "float16"), "float64": ("bfloat16", "float16", "float32")}
"""Dtype -> those of which it has every number."""


@dataclass(frozen=True)
class RecordingSchema:
    """Every per-row tensor of one run's recording, in order."""

    num_rows: int
    """R = 1 + max_steps // every_n_steps."""

    columns: tuple[ColumnSpec, ...]
    """recorded_steps, the recorded tensors in the order of `RECORDABLE`, `SCALAR_COLUMNS`, then `SKIPPED`."""

    every_n_steps: int
    key_prefix: str = ""
    """Goes before every key of the file: empty, or run_3_ for a shard that an index refers to."""

    own_dtypes: Mapping[str, str] = field(default_factory=dict)
    """Recorded tensor -> the type that it has in training, as far as that is known."""

    version: int = SCHEMA_VERSION
    """Of the file format: an unfinished file is gone on with as it was begun."""

    @property
    def last_step(self) -> int:
        """Step of the last row."""
        return (self.num_rows - 1) * self.every_n_steps

    @property
    def narrowed(self) -> dict[str, tuple[str, str]]:
        """Tensor -> its own type and the narrower one that it is recorded in."""
        stored = {column.name: str(NUMPY_DTYPES[column.dtype]) for column in self.columns}
        own = self.own_dtypes
        return {name: (own[name], stored[name]) for name in own if not holds(stored[name], own[name])}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Columns whose size only their first value will tell; of a file that is there, none."""
        return tuple(column.name for column in self.columns if len(column.dims) != len(column.sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the row's checksums."""
        return tuple(column.name for column in self.columns)

    @property
    def checksum_column(self) -> ColumnSpec:
        """`checksums`: for every row one xxh3-64 per column."""
        return ColumnSpec("checksums", "U64", (len(self.columns),), ("column",))

    @property
    def row_bytes(self) -> int:
        """Bytes that one row adds to the file, checksums included."""
        return sum(column.row_bytes for column in (*self.columns, self.checksum_column))

    def specs(self, static: Mapping[str, TensorSpec] | None = None) -> dict[str, TensorSpec]:
        """Returns key -> dtype and shape of every tensor in the shard.

        Args:
            static: Tensors besides the per-row ones, e.g. `recorded_tokens`, by name.
        """
        columns = (*self.columns, self.checksum_column)
        specs = {column.name: TensorSpec(column.dtype, (self.num_rows, *column.sizes)) for column in columns}
        return {self.key_prefix + name: spec for name, spec in (specs | dict(static or {})).items()}

    def metadata(self, run: Mapping[str, Any], *, static: "Mapping[str, np.ndarray[Any, Any]]") -> str:
        """Returns the metadata string of a shard.

        Args:
            run: What the caller knows: `run`, `seed`, `swept`, `config`, `provenance`, `attempts`.
            static: The static tensors, whose checksums are part of the metadata.
        """
        return dump_metadata(
            {
                **run,
                "schema": self.version,
                "num_rows": self.num_rows,
                "every_n_steps": self.every_n_steps,
                "checksum_columns": list(self.names),
                **({} if self.version == 1 else {"columns": {one.name: one.said for one in self.columns}}),
                **({"own_dtypes": dict(self.own_dtypes)} if self.own_dtypes else {}),
                "static_checksums": {name: static_checksum(array) for name, array in static.items()},
            }
        )


@dataclass(frozen=True)
class ShardPlan:
    """What the file of one run is to be."""

    final: Path
    """Its name once it is finished."""

    partial: Path
    """Its name until then, on the same file system."""

    schema: RecordingSchema

    run: Mapping[str, Any]
    """What it is to say of the run, see `RecordingSchema.metadata`."""

    static: Mapping[str, Array]
    """Tensors besides the per-row ones, by name without prefix."""

    environment: Mapping[str, Any] | None = None
    """In what this attempt is trained, for the list of attempts; None adds none."""

    reserve: bool = True
    """Whether the disk gives it the space for all of its rows at once."""

    @property
    def metadata(self) -> str:
        """What it is to say of itself, besides its attempts."""
        return self.schema.metadata(self.run, static=self.static)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Key -> dtype and shape of everything in it."""
        return self.schema.specs({name: TensorSpec.of(array) for name, array in self.static.items()})


def holds(stored: str, own: str) -> bool:
    """Tells whether a type, a key of `DTYPE_CODES`, has every number of another.

    Example:
        >>> holds("float32", "float16"), holds("float16", "bfloat16")
        (True, False)
    """
    return stored == own or own in _HELD.get(stored, ())


def static_checksum(array: "np.ndarray[Any, Any]") -> str:
    """Returns the xxh3-64 of an array's bytes as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(array.tobytes())


def check_wishes(
    tensors: Sequence[str],
    dtypes: Mapping[str, str],
    own_dtypes: Mapping[str, str],
    *,
    max_steps: int,
    every_n_steps: int,
) -> None:
    """Refuses what no recording can have.

    Args:
        tensors: Names that should be from `RECORDABLE`.
        dtypes: Tensor -> the type to record it in.
        own_dtypes: Tensor -> the type that it has in training, as far as that is known.
        max_steps: Optimizer steps of the run.
        every_n_steps: Steps from one row to the next.

    Raises:
        UserError: Names everything that is wrong, not only the first mistake.
    """
    mistakes = [*_mistakes(tensors, dtypes, own_dtypes)]
    if max_steps < 1:
        mistakes.append(f"trainer.max_steps is {max_steps}, expected at least 1")
    if every_n_steps < 1:
        mistakes.append(f"recorder.every_n_steps is {every_n_steps}, expected at least 1")
    if mistakes:
        raise UserError("; ".join(mistakes))


def _mistakes(tensors: Sequence[str], dtypes: Mapping[str, str], own: Mapping[str, str]) -> Iterable[str]:
    for name in dict.fromkeys(tensors):
        if name not in RECORDABLE:
            nearest = difflib.get_close_matches(name, RECORDABLE, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"recorder.tensors has {name!r}, expected some of {', '.join(RECORDABLE)}{hint}"
        if list(tensors).count(name) > 1:
            yield f"recorder.tensors names {name} {list(tensors).count(name)} times, expected once"
    for name, dtype in dtypes.items():
        if name not in tensors:
            yield f"recorder.dtypes has {name!r}, which is not in recorder.tensors ({', '.join(tensors)})"
        if dtype not in DTYPE_CODES:
            yield f"recorder.dtypes has {dtype!r} for {name}, expected one of {', '.join(DTYPE_CODES)}"
    for name, dtype in own.items():
        if dtype not in DTYPE_CODES:
            yield f"{name} is {short(dtype)} in training, expected one of {', '.join(DTYPE_CODES)}"
