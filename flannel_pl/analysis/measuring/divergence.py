"""How far runs are from each other, row by row.

Source: upstream 1.23d: ||W_i(t) - W_j(t)||_F over a set's tokens for every pair of runs, beside how far each
run has come from its own start, ||W_i(t) - W_i(0)||_F.

Shape suffixes: R rows, N runs, P pairs of runs, S tokens of a set, D dimensions.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.measuring.token_sets import token_ids
from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.metrics.lattice import widen
from flannel_pl.recording.reader import RunRecording

SPACE_BYTES = 256 * 2**20
"""That the rows at hand may take, of all threads together; one row of every run at least."""


@dataclass(frozen=True)
class Divergence:
    """Distances between the runs of an experiment."""

    pairs: tuple[tuple[int, int], ...]
    """Numbers of the runs of each pair."""

    distance_PR: Array
    """||W_i - W_j||_F, float64, in the weights' unit."""

    evolution_NR: Array
    """||W_i(t) - W_i(0)||_F of every run that is in a pair, by their numbers, float64."""

    @property
    def ratio_R(self) -> Array:
        """Mean distance over mean evolution, (R,): 1.41 if runs move independently; NaN at the start."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_R = self.distance_PR.mean(axis=0) / self.evolution_NR.mean(axis=0)
        return np.where(np.isfinite(ratio_R), ratio_R, np.nan)


def measure_divergence(
    runs: Sequence[RunRecording],
    sets: Mapping[str, Array],
    *,
    advance: Callable[[int], object] | None = None,
) -> dict[str, Divergence]:
    """Measures the distances between runs, one row of each at a time.

    Args:
        runs: Two or more, of the same tokens. Rows that not all of them have are left out.
        sets: Token set -> positions, (S,) int64.
        advance: Called with the recorded bytes of every row that is done.

    Returns:
        Token set -> divergence.

    Raises:
        UserError: If runs have other tokens, other dimensions or other steps.

    Example:
        >>> from flannel_pl.analysis.measuring.token_sets import token_sets
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     sets, _ = token_sets(recording, recording.run(0))
        ...     found = measure_divergence(list(recording), sets)
        >>> found["dead"].pairs, found["dead"].distance_PR.shape
        (((0, 1),), (1, 21))
    """
    _check_alike(runs)
    advance = advance or (lambda num_bytes: None)
    tensors = [run.tensor("embeddings") for run in runs]
    num_rows = min(len(tensor) for tensor in tensors)
    pairs = tuple(itertools.combinations(range(len(runs)), 2))
    start_NVD = [widen(tensor[0]) for tensor in tensors]
    distance = {name: np.empty((len(pairs), num_rows)) for name in sets}
    evolution = {name: np.empty((len(runs), num_rows)) for name in sets}

    @np.errstate(invalid="ignore", over="ignore")  # infinite weights make NaN, which is the answer
    def measure_row(row: int) -> int:
        W_NVD = [widen(tensor[row]) for tensor in tensors]
        space_VD = np.empty(W_NVD[0].shape)  # one for all pairs: making memory anew takes longer than they do
        between = [(W_NVD[first], W_NVD[second]) for first, second in pairs]
        for result, couples in ((distance, between), (evolution, zip(W_NVD, start_NVD, strict=True))):
            for number, (A_VD, B_VD) in enumerate(couples):
                squares_V = _squared_distances(A_VD, B_VD, space_VD)
                for name, tokens in sets.items():
                    result[name][number, row] = np.sqrt(squares_V[tokens].sum())
        return sum(tensor.row_bytes for tensor in tensors)

    with ThreadPoolExecutor(_num_threads(sum(tensor.row_bytes for tensor in tensors))) as threads:
        for num_bytes in threads.map(measure_row, range(num_rows)):
            advance(num_bytes)
    names = tuple((runs[first].index, runs[second].index) for first, second in pairs)
    return {name: Divergence(names, distance[name], evolution[name]) for name in sets}


def joined(parts: Sequence[Divergence]) -> Divergence:
    """Puts groups of runs together, between which nothing was measured.

    Args:
        parts: Of different runs; where one has fewer rows than another, the rest is NaN.
    """
    num_rows = max(part.distance_PR.shape[1] for part in parts)
    runs = [run for part in parts for run in sorted({run for pair in part.pairs for run in pair})]
    evolution_NR = np.concatenate([_padded(part.evolution_NR, num_rows) for part in parts])
    return Divergence(
        pairs=tuple(pair for part in parts for pair in part.pairs),
        distance_PR=np.concatenate([_padded(part.distance_PR, num_rows) for part in parts]),
        evolution_NR=evolution_NR[np.argsort(runs)],
    )


def _padded(values_KR: Array, num_rows: int) -> Array:
    missing = num_rows - values_KR.shape[1]
    return np.pad(values_KR, ((0, 0), (0, missing)), constant_values=np.nan)


def _num_threads(row_bytes: int) -> int:
    """Returns how many threads there may be: each has a row of every run, as stored and as float32."""
    return max(1, min(os.cpu_count() or 1, SPACE_BYTES // (3 * row_bytes)))


def _squared_distances(A_VD: Array, B_VD: Array, space_VD: Array) -> Array:
    np.subtract(A_VD, B_VD, out=space_VD, dtype=np.float64)
    squares_V: Array = np.einsum("vd,vd->v", space_VD, space_VD)
    return squares_V


def _check_alike(runs: Sequence[RunRecording]) -> None:
    first, *others = runs
    shape, steps = first.tensor("embeddings").shape, first.steps
    for other in others:
        if other.tensor("embeddings").shape[1:] != shape[1:]:
            num_tokens, dim = other.tensor("embeddings").shape[1:]
            raise UserError(
                f"run {first.index} has embeddings of {shape[1]} x {shape[2]} and run {other.index} of "
                f"{num_tokens} x {dim}; there is no distance between them"
            )
        common = min(len(steps), other.num_rows)
        if not np.array_equal(steps[:common], other.steps[:common]):
            raise UserError(f"run {first.index} and run {other.index} were recorded at other steps")
        if not np.array_equal(token_ids(first), token_ids(other)):
            raise UserError(f"run {first.index} and run {other.index} are recordings of other tokens")
