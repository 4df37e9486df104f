"""Which runs, rows, tokens and columns of two recordings belong together.

Runs are paired by their numbers, rows by their steps, tokens by their ids, checksums by what they are of.

Shape suffixes: R rows that both have, T tokens (or columns) that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flannel_pl.analysis.comparing.tensor_compare import Alignment
from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.reader import Recording, RunRecording
from flannel_pl.recording.schema import RECORDED_TOKENS
from flannel_pl.recording.tensors import Array

WITH_TOKENS = ("embeddings", "grads", "momentum", "variance", "logits")
"""Tensors whose second axis are the recorded tokens."""

ORDER = (
    *("recorded_steps", "logits", "losses_f32", "losses", "grads", "grad_norms", "learning_rates"),
    *("momentum", "variance", "embeddings", "checksums"),
)
"""In a step, each follows from those before it: the first that differs is nearest to the cause."""


def pair_runs(
    a: Recording, b: Recording, wanted: Sequence[tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """Chooses which run of A is compared with which of B.

    Args:
        a: A recording.
        b: Another.
        wanted: Pairs of numbers; None = every run that both have, or the one of each.

    Raises:
        UserError: If there is no such run, or none in common.
    """
    for name, recording in (("A", a), ("B", b)):
        if not len(recording):
            raise UserError(f"{name} is no recording: {recording.path} holds no run")
    if wanted is not None:
        for pair in wanted:
            for name, recording, index in zip("AB", (a, b), pair, strict=True):
                if index not in recording.runs:
                    there = f"{recording.path} has {numbers(recording.runs)}"
                    raise UserError(f"{name} has no run {index}; {there}")
        return list(wanted)
    if len(a) == len(b) == 1:
        return [(a.runs[0], b.runs[0])]
    common = [(index, index) for index in a.runs if index in b.runs]
    if not common:
        raise UserError(
            f"A and B have no run in common: {a.path} has {numbers(a.runs)}, {b.path} has "
            f"{numbers(b.runs)}. Say which to compare, e.g. --runs {a.runs[0]}:{b.runs[0]}"
        )
    return common


def numbers(runs: Sequence[int]) -> str:
    """Returns numbers of runs as words, e.g. "run 3" or "runs 0, 1, 2"."""
    return f"run{'s' if len(runs) > 1 else ''} {', '.join(map(str, runs))}"


@dataclass(frozen=True)
class Pairing:
    """Two runs, and what of them belongs together; made by `pair_rows`."""

    a: RunRecording
    b: RunRecording

    rows: Alignment
    """The rows that both have."""

    steps_only: tuple[Array, Array]
    """Steps that only A has, that only B has."""

    tokens_T: Array
    """Ids of the tokens that both have, ascending; none if neither recorded a tensor of tokens."""

    tokens_only: tuple[int, int]
    """How many tokens only A has, and only B."""

    positions: tuple[Array, Array] | None
    """Where the common tokens are in A and in B, (T,); None = all, in the same order."""

    @property
    def names(self) -> list[str]:
        """Tensors that can be compared, in `ORDER`."""
        names = [name for name in self.a.names if name in self.b.names and name != RECORDED_TOKENS]
        if "checksums" in names and self._checksum_columns() is None:
            names.remove("checksums")
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    @property
    def names_only(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tensors that only A has, that only B has."""
        a, b = (
            dict.fromkeys(name for name in run.names if name != RECORDED_TOKENS) for run in (self.a, self.b)
        )
        return tuple(name for name in a if name not in b), tuple(name for name in b if name not in a)

    @property
    def num_bytes(self) -> int:
        """Bytes, of both, that are to be compared."""
        per_row = sum(run.tensor(name).row_bytes for run in (self.a, self.b) for name in self.names)
        return per_row * len(self.rows.steps_R)

    def alignment(self, name: str) -> Alignment:
        """Returns which elements of the tensor `name` belong together."""
        if name in WITH_TOKENS:
            a, b = self.positions or (None, None)
            return replace(self.rows, columns_a_T=a, columns_b_T=b, labels_T=self.tokens_T.tolist())
        columns = self._checksum_columns() if name == "checksums" else None
        if columns is None:
            return self.rows
        names = self.a.metadata["checksum_columns"]
        labels = [names[column] for column in columns[0]]
        return replace(self.rows, columns_a_T=columns[0], columns_b_T=columns[1], labels_T=labels)

    def _checksum_columns(self) -> tuple[Array, Array] | None:
        """Returns the columns of equal name and dtype; None if rows cannot have equal checksums."""
        if self.positions is not None:
            return None
        columns = [list(run.metadata.get("checksum_columns", [])) for run in (self.a, self.b)]
        common = [name for name in columns[0] if name in columns[1] and self._same_dtype(name)]
        if not common:
            return None
        a, b = (np.array([names.index(name) for name in common]) for names in columns)
        return a, b

    def _same_dtype(self, name: str) -> bool:
        known = name in self.a.names and name in self.b.names
        return known and self.a.tensor(name).dtype == self.b.tensor(name).dtype


def pair_rows(a: RunRecording, b: RunRecording) -> Pairing:
    """Finds which rows and tokens of two runs belong together.

    Raises:
        UserError: If they have no step in common.
        RunError: If a recording is damaged.
    """
    steps_a, steps_b = _steps(a), _steps(b)
    rows_a, rows_b = _common_rows(a, b, steps_a, steps_b)
    if not len(rows_a):
        raise UserError(
            f"run {a.index} of A (steps {steps_a[0]} to {steps_a[-1]}) and run {b.index} of B (steps "
            f"{steps_b[0]} to {steps_b[-1]}) have no step in common"
        )
    tokens_a, tokens_b = _tokens(a), _tokens(b)
    common, in_a, in_b = np.intersect1d(tokens_a, tokens_b, return_indices=True)
    return Pairing(
        a,
        b,
        rows=Alignment(steps_a[rows_a], rows_a, rows_b),
        steps_only=(np.delete(steps_a, rows_a), np.delete(steps_b, rows_b)),
        tokens_T=common,
        tokens_only=(len(tokens_a) - len(common), len(tokens_b) - len(common)),
        positions=None if np.array_equal(tokens_a, tokens_b) else (in_a, in_b),
    )


def _steps(run: RunRecording) -> Array:
    lengths = {name: len(run.tensor(name)) for name in run.names if name != RECORDED_TOKENS}
    if len(set(lengths.values())) != 1:
        rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise RunError(
            f"run {run.index} is damaged: its tensors have different numbers of rows ({rows}). "
            "Record or copy it again."
        )
    num_rows = next(iter(lengths.values()))
    steps: Array = run.steps if "recorded_steps" in run.names else np.arange(num_rows)
    return steps


def _common_rows(a: RunRecording, b: RunRecording, steps_a: Array, steps_b: Array) -> tuple[Array, Array]:
    """Pairs rows by their place if most places have the same step, so that a damaged step is seen as one."""
    num_rows = min(len(steps_a), len(steps_b))
    if np.count_nonzero(steps_a[:num_rows] == steps_b[:num_rows]) * 2 > num_rows:
        return np.arange(num_rows), np.arange(num_rows)
    for run, steps in ((a, steps_a), (b, steps_b)):
        if (np.diff(steps) <= 0).any():
            raise RunError(
                f"run {run.index} is damaged: its recorded_steps do not ascend. See flannel-pl verify."
            )
    _, rows_a, rows_b = np.intersect1d(steps_a, steps_b, return_indices=True)
    return rows_a, rows_b


def _tokens(run: RunRecording) -> Array:
    """Returns the ids of the recorded tokens."""
    if RECORDED_TOKENS in run.names:
        return np.asarray(run.tensor(RECORDED_TOKENS))
    return np.arange(next((run.tensor(name).shape[1] for name in WITH_TOKENS if name in run.names), 0))
