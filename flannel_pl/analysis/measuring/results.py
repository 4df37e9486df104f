"""What was measured of a run, and of an experiment.

Shape suffixes: R rows, S tokens of a set, F frames of a cloud.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.arrays import Array

ALL_METRICS, LIVES = "every metric of tokens", "lives of tokens"
"""What may be left out besides single metrics."""


@dataclass(frozen=True)
class RunMeasures:
    """What was measured of one run."""

    run: int
    """Its number in the experiment."""

    label: str
    """E.g. "seed 42", or "seed 42, model.init_scale 0.01"."""

    steps_R: Array
    """Step of each row, int64."""

    series: dict[str, dict[str, Array]]
    """Token set -> metric -> (R,) float64; NaN where it is undefined, e.g. motion in row 0 and where the
    optimizer skipped a step."""

    scalars: dict[str, Array]
    """loss, learning_rate, grad_norm, as far as they are recorded -> (R,) float64."""

    tokens: dict[str, dict[str, Array]]
    """Token set -> freeze_step, early_end, midlife_end, late_end -> (S,) int64, see `lifecycle`."""

    histogram: dict[str, Array]
    """Token set -> (R, bins) int64: tokens by the L2 norm of their lattice displacement."""

    left_out: dict[str, str]
    """Metric -> why it could not be computed."""

    num_tokens: dict[str, int] = field(default_factory=dict)
    """Token set -> S."""

    skipped_R: Array = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether the optimizer skipped the step of each row, (R,) bool; empty if it skipped none."""

    @property
    def moved_R(self) -> Array:
        """The last step up to each row that the optimizer took, int64: to that a row's weights belong."""
        if not self.skipped_R.any():
            return self.steps_R
        taken_R: Array = np.maximum.accumulate(np.where(self.skipped_R, 0, self.steps_R))
        return taken_R


@dataclass(frozen=True)
class Cloud:
    """Where some tokens of a run are at some steps, in three axes that stay the same."""

    run: int
    label: str
    """As of its `RunMeasures`."""

    tokens_S: Array
    """Vocabulary ids, int64: the dead ones first."""

    dead_S: Array
    """1 dead, 0 live, -1 unknown, int64."""

    steps_F: Array
    """Step of each frame, int64."""

    points_F3S: Array
    """Weights along the axes, float32."""

    fitted_step: int
    """The step whose weights the axes are the principal directions of."""

    shares_3: Array
    """Of these weights' variance along each axis, as a part of all, float64; 0 where there is none."""


@dataclass(frozen=True)
class Measures:
    """What was measured of an experiment."""

    path: Path
    title: str
    runs: tuple[RunMeasures, ...]

    pairs: dict[str, Divergence]
    """Token set -> how far the runs are from each other; empty for a single run."""

    dim: int
    """D, width of an embedding."""

    left_out: dict[str, str]
    """Metric -> why no run has it."""

    clouds: tuple[Cloud, ...] = ()
    """Of the first run of each group of runs that differ in their seed only."""
