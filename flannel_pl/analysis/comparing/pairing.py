"""Which runs, rows, tokens and columns of two recordings belong together.

Runs are paired by their numbers, rows by their steps, tokens by their ids, checksums by what they are of.

Shape suffixes: R rows that both have, T tokens (or columns) that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flannel_pl.analysis.comparing.tensor_compare import Alignment
from flannel_pl.arrays import Array
from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.reader import Recording, RunRecording

WITH_TOKENS = ("embeddings", "grads", "momentum", "variance", "logits")
"""Tensors whose second axis are the recorded tokens, also in files that do not say so."""

ORDER = (
    *("recorded_steps", "logits", "losses_f32", "losses", "grads", "grad_norms", "learning_rates"),
    *("momentum", "variance", "embeddings"),
)
"""In a step, each follows from those before it: the first that differs is nearest to the cause."""

LAST = "checksums"
"""What follows from all others, also from those that are not in `ORDER`."""


def pair_runs(
    a: Recording, b: Recording, wanted: Sequence[tuple[int, int]] | None, *, single: bool
) -> list[tuple[int, int]]:
    """Chooses which run of A is compared with which of B.

    Args:
        a: A recording.
        b: Another.
        wanted: Pairs of numbers; None = every run that both have, or the one of each.
        single: Whether each is of one run, whatever its number.

    Raises:
        UserError: If there is no such run, none in common, or none is wanted.
    """
    for name, recording in (("A", a), ("B", b)):
        if not len(recording):
            raise UserError(f"{name} is no recording: {recording.path} holds no run")
    if wanted is not None:
        if not wanted:
            raise UserError("no pair of runs is given; expected at least one, e.g. 0:3")
        for pair in wanted:
            for name, recording, index in zip("AB", (a, b), pair, strict=True):
                if index not in recording.runs:
                    there = f"{recording.path} has {numbers(recording.runs)}"
                    raise UserError(f"{name} has no run {index}; {there}")
        return list(wanted)
    if single:
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
    """Ids of the tokens that both have; none if either recorded no tensor of tokens."""

    tokens_only: tuple[int, int]
    """How many tokens only A has, and only B."""

    positions: tuple[Array, Array] | None
    """Where the common tokens are in A and in B, (T,); None = all, in the same order."""

    @cached_property
    def names(self) -> list[str]:
        """Tensors that can be compared, in `ORDER`."""
        names = [name for name in self._common if name not in self.not_compared]
        return sorted(
            names, key=lambda name: (name == LAST, ORDER.index(name) if name in ORDER else len(ORDER))
        )

    @cached_property
    def not_compared(self) -> dict[str, str]:
        """Tensors that both have and of which no elements belong together -> why."""
        of_tokens = [] if len(self.tokens_T) else [name for name in self._common if self._has_tokens(name)]
        result = dict.fromkeys(of_tokens, "no token is in both")
        if "checksums" in self._common:
            if self.positions is not None:
                result["checksums"] = "they are of all tokens of a row"
            elif self._columns_named and not self._common_columns:
                result["checksums"] = "they are of other tensors, or of other types of numbers"
        return result

    def _has_tokens(self, name: str) -> bool:
        return _has_tokens(self.a, name) and _has_tokens(self.b, name)

    @cached_property
    def _common(self) -> list[str]:
        return [name for name in _row_tensors(self.a) if name in self.b.names]

    @property
    def names_only(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tensors that only A has, that only B has."""
        a, b = _row_tensors(self.a), _row_tensors(self.b)
        return tuple(name for name in a if name not in b), tuple(name for name in b if name not in a)

    @property
    def num_bytes(self) -> int:
        """Bytes, of both, that are to be compared."""
        per_row = sum(run.tensor(name).row_bytes for run in (self.a, self.b) for name in self.names)
        return per_row * len(self.rows.steps_R)

    def alignment(self, name: str) -> Alignment:
        """Returns which elements of the tensor `name` belong together."""
        if self._has_tokens(name):
            a, b = self.positions or (None, None)
            return replace(self.rows, columns_a_T=a, columns_b_T=b, labels_T=self.tokens_T.tolist())
        if name != "checksums" or not self._columns_named:  # then by their places
            return self.rows
        common = self._common_columns
        a, b = (np.array([columns.index(one) for one in common]) for columns in self._columns)
        return replace(self.rows, columns_a_T=a, columns_b_T=b, labels_T=common)

    @cached_property
    def _columns(self) -> tuple[list[str], list[str]]:
        """What the columns of the checksums are of, in A and in B; none if a file does not say of each."""
        return _checksum_columns(self.a), _checksum_columns(self.b)

    @cached_property
    def _columns_named(self) -> bool:
        return all(self._columns)

    @cached_property
    def _common_columns(self) -> list[str]:
        """Checksums that are equal if what they are of is."""
        in_a, in_b = self._columns
        return [name for name in in_a if name in in_b and self._alike(name)]

    def _alike(self, name: str) -> bool:
        if name not in self._common:
            return False
        a, b = self.a.tensor(name), self.b.tensor(name)
        return (a.dtype, a.shape[1:]) == (b.dtype, b.shape[1:])


def pair_rows(a: RunRecording, b: RunRecording) -> Pairing:
    """Finds which rows and tokens of two runs belong together.

    Raises:
        UserError: If they have no step or no tensor in common.
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
    same = np.array_equal(tokens_a, tokens_b)
    common, in_a, in_b = np.intersect1d(tokens_a, tokens_b, return_indices=True)
    comparable = len(tokens_a) > 0 and len(tokens_b) > 0  # else one has no tensor of tokens at all
    pairing = Pairing(
        a,
        b,
        rows=Alignment(steps_a[rows_a], rows_a, rows_b),
        steps_only=(np.delete(steps_a, rows_a), np.delete(steps_b, rows_b)),
        tokens_T=tokens_a if same else common,
        tokens_only=(len(tokens_a) - len(common), len(tokens_b) - len(common)) if comparable else (0, 0),
        positions=(in_a, in_b) if comparable and not same else None,
    )
    if not pairing.names and not pairing.not_compared:
        raise UserError(
            f"run {a.index} of A ({', '.join(a.names)}) and run {b.index} of B ({', '.join(b.names)}) have "
            "no tensor in common"
        )
    return pairing


def _steps(run: RunRecording) -> Array:
    lengths = {name: _num_rows(run, name) for name in _row_tensors(run)}
    if len(set(lengths.values())) > 1:
        rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise _damaged(run, f"its tensors have different numbers of rows ({rows})")
    num_rows = max(lengths.values(), default=0)
    if not num_rows:
        raise _damaged(run, "it has no rows")
    steps: Array = run.steps if "recorded_steps" in run.names else np.arange(num_rows)
    return steps


def _common_rows(a: RunRecording, b: RunRecording, steps_a: Array, steps_b: Array) -> tuple[Array, Array]:
    """Pairs rows by their place if most places have the same step, so that a damaged step is seen as one."""
    num_rows = min(len(steps_a), len(steps_b))
    if np.count_nonzero(steps_a[:num_rows] == steps_b[:num_rows]) * 2 > num_rows:
        return np.arange(num_rows), np.arange(num_rows)
    for run, steps in ((a, steps_a), (b, steps_b)):
        if (np.diff(steps) <= 0).any():
            raise _damaged(run, "its recorded_steps do not ascend")
    _, rows_a, rows_b = np.intersect1d(steps_a, steps_b, return_indices=True)
    return rows_a, rows_b


def _tokens(run: RunRecording) -> Array:
    """Returns the ids of the recorded tokens; none if there is no tensor of tokens."""
    shapes = {name: run.tensor(name).shape for name in run.names if _has_tokens(run, name)}
    widths = {shape[1] if len(shape) > 1 else 0 for shape in shapes.values()}
    if not shapes:
        return np.arange(0)
    ids = np.asarray(run.tensor(RECORDED_TOKENS)[:]) if RECORDED_TOKENS in run.names else None
    if ids is not None:
        widths |= {len(ids), len(np.unique(ids))}
    if len(widths) > 1 or 0 in widths:
        found = [f"{name} {list(shape)}" for name, shape in shapes.items()]
        if ids is not None:
            found.append(f"{len(np.unique(ids))} different ids in {len(ids)} {RECORDED_TOKENS}")
        raise _damaged(run, f"its tensors do not have one column for each token ({', '.join(found)})")
    return np.arange(*widths) if ids is None else ids


def _has_tokens(run: RunRecording, name: str) -> bool:
    column = run.columns.get(name)
    return name in WITH_TOKENS if column is None else column.dims[:1] == ("V",)


def _row_tensors(run: RunRecording) -> list[str]:
    return [name for name in run.names if name != RECORDED_TOKENS]


def _num_rows(run: RunRecording, name: str) -> int:
    shape = run.tensor(name).shape
    return int(shape[0]) if shape else 0


def _damaged(run: RunRecording, what: str) -> RunError:
    return RunError(f"run {run.index} is damaged: {what}. See flannel-pl verify, which says what to do.")


def _checksum_columns(run: RunRecording) -> list[str]:
    names = list(run.metadata.get("checksum_columns", []))
    return names if run.tensor("checksums").shape[1:] == (len(names),) else []
