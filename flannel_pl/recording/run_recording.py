"""One run of a recording: its tensors by name, and by the parameter that they are of."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.attempts import Attempt, attempts_of
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.lazy import LazyTensor
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.html import table_of
from flannel_pl.recording.writing.disk import readable_bytes

VALUES = {"embeddings": "values"}
"""The bare names of what is called otherwise of every other parameter."""

PARAMETER_NAMES = ("embeddings", "grads", "momentum", "variance")
"""What a file of schema 1, or the notebook's own, has of its one parameter."""

TENSOR_HEAD = ("tensor", "dtype", "shape", "size", "meaning")


def tensor_rows(
    tensors: Mapping[str, LazyTensor], columns: Mapping[str, ColumnSpec] | None = None
) -> list[tuple[str, ...]]:
    """Returns of each tensor what a table shows."""
    return [
        (
            name,
            tensor.dtype,
            str(tuple(tensor.shape)),
            readable_bytes(len(tensor) * tensor.row_bytes),
            columns[name].meaning if columns and name in columns else "",
        )
        for name, tensor in tensors.items()
    ]


class ParameterRecording:
    """What is recorded of one parameter; made by `run["E"]`. Its parts are attributes.

    Attributes:
        name: As it was asked for.
        names: Its parts: `values`, `grads`, and what the optimizer keeps, e.g. `momentum`.
    """

    def __init__(self, name: str, parts: Mapping[str, LazyTensor]) -> None:
        self.name, self.names = name, tuple(parts)
        self._parts = parts

    def __getitem__(self, part: str) -> LazyTensor:
        """Returns a part.

        Raises:
            KeyError: If there is none of that name.
        """
        if part not in self._parts:
            raise KeyError(f"{self.name} has no {part!r}; it has {', '.join(self.names)}")
        return self._parts[part]

    def __getattr__(self, part: str) -> LazyTensor:
        """Returns a part."""
        if part.startswith("_") or part not in self._parts:
            raise AttributeError(f"{self.name} has no {part!r}; it has {', '.join(self.names)}")
        return self._parts[part]

    def __dir__(self) -> list[str]:
        """Completes the parts, too."""
        return [*super().__dir__(), *self.names]

    def __repr__(self) -> str:
        """Names the parts."""
        return f"ParameterRecording({self.name}: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        return table_of(f"Parameter {self.name}", TENSOR_HEAD, tensor_rows(self._parts))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.names)


class RunRecording:
    """The recording of one run. Its tensors are attributes: `run.embeddings[3]`, `run.losses_f32[:]`.

    `run["E"]` is what belongs to the first parameter, `run["head"]` to another, by its alias or its name.

    Attributes:
        index: Number of the run in its experiment.
        seed: Its seed; None if the file does not say.
        swept: Config key -> the value this run had of it.
        metadata: All the file says of this run.
        names: Names of its tensors.
        columns: Name -> what each column is, as far as the file says it; those of schema 1 are known by name.
    """

    def __init__(
        self,
        index: int,
        tensors: dict[str, LazyTensor],
        *,
        seed: int | None,
        metadata: dict[str, Any],
        columns: dict[str, ColumnSpec],
    ) -> None:
        self.index = index
        self.seed = seed
        self.metadata = metadata
        self.swept: dict[str, Any] = metadata.get("swept", {})
        self.names = tuple(tensors)
        self.columns = columns
        self._tensors = tensors

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """From which row on the run was trained in which environment, as far as the file says."""
        return attempts_of(self.metadata)

    @property
    def has_token_rows(self) -> bool:
        """Whether there are embeddings with a row for each token; a parameter may have other axes."""
        column = self.columns.get("embeddings")
        return "embeddings" in self.names and (column is None or column.dims == ("V", "D"))

    def rows_of(self, tokens: Any) -> Array:
        """Returns where tokens stand on the token axis: a recording of some tokens has those only.

        Args:
            tokens: Token numbers, as of the vocabulary.

        Raises:
            KeyError: If one of them is not recorded.

        Example:
            >>> with open_recording("runs/dead_only") as recording:  # doctest: +SKIP
            ...     W = recording.run(0).embeddings[:, recording.run(0).rows_of([58, 77])]
        """
        wanted = np.asarray(tokens, dtype=np.int64)
        if RECORDED_TOKENS not in self._tensors:
            num_tokens = self.tensor("embeddings").shape[1]
            absent, rows = (wanted < 0) | (wanted >= num_tokens), wanted
        else:
            recorded = np.asarray(self.tensor(RECORDED_TOKENS), dtype=np.int64)
            num_tokens = len(recorded)
            rows = np.searchsorted(recorded, wanted).clip(max=num_tokens - 1)
            absent = recorded[rows] != wanted
        if absent.any():
            raise KeyError(
                f"run {self.index} has {num_tokens:,} tokens recorded, and not {wanted[absent].flat[0]}"
            )
        return rows

    @property
    def num_rows(self) -> int:
        """Number of recorded steps, row 0 included."""
        return len(self.tensor("recorded_steps"))

    @property
    def steps(self) -> Any:
        """The step of each row, int64 of shape (R,)."""
        return self.tensor("recorded_steps")[:]

    def tensor(self, name: str) -> LazyTensor:
        """Returns a tensor by name.

        Raises:
            AttributeError: If this run has no such tensor.
        """
        if name not in self._tensors:
            raise AttributeError(f"run {self.index} has no {name!r}; it has {', '.join(self.names)}")
        return self._tensors[name]

    def __getitem__(self, name: str) -> Any:
        """Returns a tensor (`LazyTensor`), or what is recorded of a parameter (`ParameterRecording`).

        Args:
            name: Of a tensor; or a parameter's alias, or its name as in `named_parameters()`. "E" is the
                first parameter, unless another has that alias.

        Raises:
            KeyError: If there is none of that name.
        """
        if name in self._tensors:
            return self._tensors[name]
        if parts := self._parts_of(name):
            return ParameterRecording(name, parts)
        known = ", ".join((*self.names, *self._parameters))
        raise KeyError(f"run {self.index} has no {name!r}; it has {known}")

    @property
    def _parameters(self) -> list[str]:
        """The aliases of all parameters that it has something of."""
        first = ["E"] if self._parts_of("E") else []
        return list(dict.fromkeys([*first, *map(_alias, filter(self._is_further, self.names))]))

    def _is_further(self, key: str) -> bool:
        """Tells whether a tensor is of a parameter that has an alias before it."""
        return "/" in key and self._parameter(key) != ""

    def _parts_of(self, name: str) -> dict[str, LazyTensor]:
        """Returns part -> tensor of a parameter."""
        declared = {key: place for place, key in enumerate(self.columns)}  # as in the model
        further = sorted(filter(self._is_further, self.names), key=lambda key: declared.get(key, 0))
        bare = [key for key in self.names if "/" not in key and self._parameter(key)]
        bare.sort(key=lambda key: key not in PARAMETER_NAMES)
        if not set(bare) & set(PARAMETER_NAMES):
            bare = []  # only what every recording has, e.g. the learning rate
        keys = [key for key in further if _alias(key) == name]
        keys = keys or [key for key in further if self._parameter(key) == name]
        if not keys and (name in ("E", self.metadata.get("alias")) or name in map(self._parameter, bare)):
            keys = bare
        if not keys and name == "E" and further:
            keys = [key for key in further if _alias(key) == _alias(further[0])]
        return {VALUES.get(part, part): self._tensors[key] for key in keys if (part := _part(key))}

    def _parameter(self, key: str) -> str:
        known = self.columns[key].parameter if key in self.columns else ""
        return known or ("embeddings" if key in PARAMETER_NAMES else "")

    def __getattr__(self, name: str) -> LazyTensor:
        """Returns `tensor(name)`."""
        if name.startswith("_"):  # asked for by copy and pickle before there is anything to look in
            raise AttributeError(name)
        return self.tensor(name)

    def __dir__(self) -> list[str]:
        """Completes the tensors, too."""
        return [*super().__dir__(), *self.names]

    def __copy__(self) -> "RunRecording":
        """Returns a copy with files of its own, like every other copy."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        """Names run, seed and tensors."""
        return f"RunRecording(run {self.index}, seed {self.seed}: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        swept = "".join(f", {key} {value}" for key, value in self.swept.items())
        title = f"Run {self.index}: seed {self.seed}{swept}, {self.num_rows} rows"
        return table_of(title, TENSOR_HEAD, tensor_rows(self._tensors, self.columns))

    def _ipython_key_completions_(self) -> list[str]:
        return [*self.names, *self._parameters]


def _alias(key: str) -> str:
    return key.rpartition("/")[0]


def _part(key: str) -> str:
    return key.rpartition("/")[2]
