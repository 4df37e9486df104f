"""Which steps the optimizer skipped, or did nothing in because no batch counted.

In their rows nothing moved, which does not mean that it stood still.

Shape suffixes: R rows.
"""

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.schema import SKIPPED, no_batch_counted
from flannel_pl.recording.reader import RunRecording


def skipped_rows(run: RunRecording) -> Array:
    """Returns for each row whether nothing can have moved since the row before, (R,) bool.

    Where rows are several steps apart, only the last of them is marked and the others may have been taken.
    """
    steps_R = np.asarray(run.steps)
    marks_R = _marked_rows(run) | _empty_rows(run)
    skipped_R: Array = marks_R & (np.diff(steps_R, prepend=-1) == 1)
    return skipped_R


def _marked_rows(run: RunRecording) -> Array:
    if SKIPPED not in run.names:
        return np.zeros(len(run.steps), np.bool_)
    return np.asarray(run.tensor(SKIPPED)[:])


def _empty_rows(run: RunRecording) -> Array:
    """Returns where no batch counted and nothing moved; an optimizer may step without a gradient, too."""
    if not {"losses_f32", "grad_norms"} <= set(run.names):
        return np.zeros(len(run.steps), np.bool_)
    empty_R: Array = np.asarray(no_batch_counted(run.losses_f32[:], run.grad_norms[:]))
    if run.has_token_rows:
        for row in np.flatnonzero(empty_R):
            empty_R[row] = row > 0 and run.embeddings[row].tobytes() == run.embeddings[row - 1].tobytes()
    return empty_R
