"""Streams recordings through the metrics, a few rows of a run at a time, on all cores.

Nothing but the rows at hand and one number per row and metric is in memory, so a recording may be as large
as it likes. Stretches of rows are independent: each begins with the row before it.

Shape suffixes: R rows, V recorded tokens, S tokens of a set, D dimensions, N runs, P pairs of runs.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.analysis.divergence import Divergence
from flannel_pl.analysis.meter import LATTICE, STANDSTILL, Meter, Stretch
from flannel_pl.analysis.replay import OptimizerMeter
from flannel_pl.analysis.sets import token_sets
from flannel_pl.analysis.settings import PARAM_DTYPES, is_exact, trained_dtype
from flannel_pl.analysis.skipped import skipped_rows
from flannel_pl.arrays import Array
from flannel_pl.recording.reader import Recording, RunRecording

Advance = Callable[[int], object]
"""Called with the number of recorded bytes that were just measured."""

SCALARS = {
    "loss": ("losses_f32", "losses"),  # the notebook's own files have the second only
    "learning_rate": ("learning_rates",),
    "grad_norm": ("grad_norms",),
}
"""What a scalar is called -> the columns that have it, the best first."""

ALL_METRICS, LIVES = "every metric of tokens", "lives of tokens"
"""What may be left out besides single metrics."""

NO_EMBEDDINGS = "the embeddings are not recorded; --recorder.tensors [embeddings, losses] would"

STRETCH_BYTES = 24 * 2**20
"""Recorded bytes that a thread takes at a time, of all tensors that are read together."""

MAX_THREADS = 8
"""More would take more memory than a gigabyte, and hardly any disk is faster than so many."""


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


def measure_run(recording: Recording, index: int, *, advance: Advance | None = None) -> RunMeasures:
    """Measures one run.

    Args:
        recording: An open recording.
        index: Number of the run.
        advance: Called with the bytes of every stretch of rows that is done.

    Returns:
        Its measures; without embeddings nothing but the scalars.

    Raises:
        RunError: If a file cannot be read.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     measures = measure_run(recording, 0)
        >>> measures.label, measures.series["dead"]["origin_radius"].shape
        ('seed 42', (21,))
    """
    run = recording.run(index)
    if "embeddings" not in run.names:
        left_out = {ALL_METRICS: NO_EMBEDDINGS}
        return RunMeasures(
            *(index, _label(run), run.steps, {}, _scalars(run), {}, {}, left_out),
            skipped_R=skipped_rows(run),
        )
    sets, left_out = token_sets(recording, run)
    left_out = {f"the {name} tokens": reason for name, reason in left_out.items()}
    W = run.tensor("embeddings")
    trained = trained_dtype(recording, run)
    if not is_exact(W.dtype, trained):
        reason = f"the weights were {trained} and are recorded as {W.dtype}, which rests at other times"
        if trained not in PARAM_DTYPES and W.dtype == trained:
            reason = f"the weights are {trained}; this is measured of {' and '.join(PARAM_DTYPES)} only"
        left_out |= dict.fromkeys((*STANDSTILL, *LATTICE, LIVES), reason)
    skipped_R = skipped_rows(run)
    optimizer = OptimizerMeter(recording, run)
    meter = Meter(W, run.steps, sets, optimizer, skipped_R=skipped_R, trained=trained)
    left_out |= meter.optimizer.left_out
    advance = advance or (lambda num_bytes: None)
    stretches = list(_stretches(len(W), meter.row_bytes))
    parts: list[Stretch] = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for part, rows in zip(threads.map(meter.measure, stretches), stretches, strict=True):
            parts.append(part)
            advance(len(rows) * meter.row_bytes)
    last_step = int(run.steps[~skipped_R][-1])
    return RunMeasures(
        run=index,
        label=_label(run),
        steps_R=run.steps,
        series=_series(parts, sets, skipped_R),
        scalars=_scalars(run),
        tokens={name: _tokens(parts, name, last_step) for name in sets} if meter.has_lattice else {},
        histogram={
            name: np.concatenate([part.histogram[name] for part in parts])
            for name in (sets if meter.has_lattice else ())
        },
        left_out=left_out,
        num_tokens={name: len(tokens) for name, tokens in sets.items()},
        skipped_R=skipped_R,
    )


def measured_bytes(recording: Recording, index: int) -> int:
    """Returns how many recorded bytes `measure_run` reads; 0 if there are no embeddings to measure."""
    run = recording.run(index)
    if "embeddings" not in run.names:
        return 0
    W = run.tensor("embeddings")
    return len(W) * (W.row_bytes + OptimizerMeter(recording, run).row_bytes)


def _stretches(num_rows: int, row_bytes: int) -> Iterator[range]:
    height = max(1, STRETCH_BYTES // row_bytes)
    for start in range(0, num_rows, height):
        yield range(start, min(start + height, num_rows))


def _series(parts: list[Stretch], sets: Mapping[str, Array], skipped_R: Array) -> dict[str, dict[str, Array]]:
    """Joins the stretches, and adds what only the centroids of all rows tell."""
    with np.errstate(invalid="ignore"):  # infinite weights, and 0 / 0 before the centroid has moved
        return _joined(parts, sets, skipped_R)


def _joined(parts: list[Stretch], sets: Mapping[str, Array], skipped_R: Array) -> dict[str, dict[str, Array]]:
    result: dict[str, dict[str, Array]] = {}
    centroids = {name: np.concatenate([part.centroids[name] for part in parts]) for name in sets}
    for name, centroids_RD in centroids.items():
        series = {
            key: np.concatenate([part.series[name][key] for part in parts]) for key in parts[0].series[name]
        }
        series["centroid_norm"] = np.linalg.norm(centroids_RD, axis=1)
        series["centroid_drift"] = np.linalg.norm(centroids_RD - centroids_RD[0], axis=1)
        speeds = np.linalg.norm(np.diff(centroids_RD, axis=0), axis=1)
        series["centroid_speed"] = np.where(skipped_R, np.nan, np.concatenate([[np.nan], speeds]))
        path = np.concatenate([[0.0], np.cumsum(speeds)])
        series["path_efficiency"] = series["centroid_drift"] / path
        result[name] = series
    if "dead" in centroids and "live" in centroids:
        apart_RD = centroids["live"] - centroids["dead"]
        result["all"]["separation"] = np.linalg.norm(apart_RD, axis=1)
    return result


def _tokens(parts: list[Stretch], name: str, last_step: int) -> dict[str, Array]:
    """Joins the stretches' lives of the tokens."""
    whole, *later = (part.lifecycles[name] for part in parts)
    for one in later:
        whole.merge(one)
    result: dict[str, Array] = whole.result(last_step)
    return result


def _scalars(run: RunRecording) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, columns in SCALARS.items():
        recorded = [column for column in columns if column in run.names]
        if recorded:
            with np.errstate(invalid="ignore"):  # a NaN stays one
                found[name] = np.asarray(run.tensor(recorded[0])).astype(np.float64)
    return found


def _label(run: RunRecording) -> str:
    words: list[Any] = [f"run {run.index}" if run.seed is None else f"seed {run.seed}"]
    words += [f"{key} {value}" for key, value in run.swept.items()]
    return ", ".join(words)
