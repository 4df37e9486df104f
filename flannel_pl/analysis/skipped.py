"""Which steps the optimizer skipped: in their rows nothing moved, which does not mean that it stood still.

Shape suffixes: R rows.
"""

import numpy as np

from flannel_pl.recording.formats.safetensors.tensors import Array
from flannel_pl.recording.formats.schema import SKIPPED
from flannel_pl.recording.reader import RunRecording


def skipped_rows(run: RunRecording) -> Array:
    """Returns for each row whether nothing can have moved since the row before, (R,) bool.

    Where rows are several steps apart, only the last of them is marked and the others may have been taken.
    """
    steps_R = np.asarray(run.steps)
    if SKIPPED not in run.names:
        return np.zeros(len(steps_R), np.bool_)
    marks_R: Array = np.asarray(run.tensor(SKIPPED)[:]) & (np.diff(steps_R, prepend=-1) == 1)
    return marks_R
