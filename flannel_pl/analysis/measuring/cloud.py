"""Where tokens are: some hundreds of them, at some dozens of steps, along the three axes that tell most.

Source: principal components, by a singular value decomposition of the tokens' weights around their mean.

Shape suffixes: F frames, S shown tokens, D dimensions, K axes that there are.
"""

from collections.abc import Callable

import numpy as np

from flannel_pl.analysis.measuring.results import Cloud
from flannel_pl.analysis.measuring.token_sets import token_ids, token_sets
from flannel_pl.arrays import Array
from flannel_pl.recording.reader import Recording, RunRecording

MAX_CLOUDS = 6
"""Of an experiment, one for each group of runs."""

MAX_TOKENS = 200
"""Of the dead ones, and as many live ones; twice as many where it is not known which are dead."""

MAX_FRAMES = 48

AXES = 3


def measure_cloud(
    recording: Recording,
    run: RunRecording,
    label: str,
    *,
    rows: Array | None = None,
    advance: Callable[[int], object] | None = None,
) -> Cloud | None:
    """Reads where some tokens of a run are, and projects them on the principal axes of its last row.

    The last row, that is, whose weights are finite. Coordinates are of the weights themselves, not around a
    mean, so that zero is zero.

    Args:
        recording: Where the run is from; it has the masks.
        run: With a row of weights for each token.
        label: What the run is called.
        rows: Of the frames, ascending; `frame_rows` of the run if None. No other is read.
        advance: Called with 1 for each row that was read.

    Returns:
        None if no row is finite.
    """
    positions_S, dead_S = _shown(recording, run)
    rows, W = frame_rows(run.num_rows) if rows is None else rows, run.tensor("embeddings")
    points_F3S = np.full((len(rows), AXES, len(positions_S)), np.nan, np.float32)
    axes_3D, shares_3, fitted_row = None, np.zeros(AXES), 0
    for frame, row in reversed(list(enumerate(rows))):  # one row in memory, whatever its width
        with np.errstate(invalid="ignore"):  # a NaN stays one
            W_SD = np.asarray(W[int(row), positions_S]).astype(np.float64)
        if axes_3D is None and np.isfinite(W_SD).all():
            fitted_row, (axes_3D, shares_3) = row, principal_axes(W_SD)
        if axes_3D is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                points_F3S[frame] = axes_3D @ W_SD.T
        if advance is not None:
            advance(1)
    if axes_3D is None:
        return None
    return Cloud(
        run=run.index,
        label=label,
        tokens_S=token_ids(run)[positions_S],
        dead_S=dead_S,
        steps_F=run.steps[rows].astype(np.int64),
        points_F3S=points_F3S,
        fitted_step=int(run.steps[fitted_row]),
        shares_3=shares_3,
    )


def cloud_bytes(run: RunRecording, rows: Array | None = None) -> int:
    """Returns how many recorded bytes `measure_cloud` reads."""
    num_rows = len(frame_rows(run.num_rows) if rows is None else rows)
    return num_rows * run.tensor("embeddings").row_bytes


def frame_rows(num_rows: int) -> Array:
    """Returns the rows of the frames: all, or half of them evenly spread and half closer to the beginning.

    Example:
        >>> len(frame_rows(1001)), frame_rows(1001)[:6].tolist(), frame_rows(3).tolist()
        (45, [0, 1, 2, 3, 4, 6], [0, 1, 2])
    """
    if num_rows <= MAX_FRAMES:
        return np.arange(num_rows)
    half = MAX_FRAMES // 2
    even, early = np.linspace(0, num_rows - 1, half), np.geomspace(1, num_rows - 1, half)
    return np.unique(np.concatenate([even, early]).round().astype(np.int64))


def principal_axes(W_SD: Array) -> tuple[Array, Array]:
    """Returns the three directions in which points extend most, and the share of the variance in each.

    Args:
        W_SD: Finite.

    Returns:
        (3, D) orthogonal directions, each with its largest component positive, 0 where there are no more; and
        (3,) parts of the variance.
    """
    centred_SD = W_SD - W_SD.mean(axis=0)
    largest = np.abs(centred_SD).max()
    if largest > 0:  # of the smallest numbers the squares would be 0
        centred_SD = centred_SD / largest
    _, values_K, axes_KD = np.linalg.svd(centred_SD, full_matrices=False)
    signs_K = np.sign(axes_KD[np.arange(len(axes_KD)), np.abs(axes_KD).argmax(axis=1)])
    axes_3D, shares_3 = np.zeros((AXES, W_SD.shape[1])), np.zeros(AXES)
    count = min(AXES, len(values_K))
    axes_3D[:count] = (axes_KD * signs_K[:, None])[:count]
    if largest > 0:
        shares_3[:count] = (values_K**2 / (values_K**2).sum())[:count]
    return axes_3D, shares_3


def _shown(recording: Recording, run: RunRecording) -> tuple[Array, Array]:
    """Returns the positions of the tokens to show, dead ones first, and whether each is dead."""
    sets, _ = token_sets(recording, run)
    if "dead" not in sets and "live" not in sets:
        positions_S = _spread(sets["all"], 2 * MAX_TOKENS)
        return positions_S, np.full(len(positions_S), -1)
    dead, live = (_spread(sets.get(name, np.arange(0)), MAX_TOKENS) for name in ("dead", "live"))
    return np.concatenate([dead, live]), np.repeat([1, 0], [len(dead), len(live)])


def _spread(positions: Array, most: int) -> Array:
    """Returns at most so many of the positions, evenly spread."""
    if len(positions) <= most:
        return positions
    chosen: Array = positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]
    return chosen
