"""Measures one run: streams its rows through the metrics, a few at a time, on all cores.

Nothing but the rows at hand and one number per row and metric is in memory, so a recording may be as large
as it likes. Stretches of rows are independent: each begins with the row before it.

Shape suffixes: R rows, V recorded tokens, S tokens of a set, D dimensions.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np

from flannel_pl.analysis.measuring.optimizer_meter import OF_OPTIMIZER, OptimizerMeter
from flannel_pl.analysis.measuring.results import ALL_METRICS, LIVES, RunMeasures
from flannel_pl.analysis.measuring.settings import PARAM_DTYPES, is_exact, trained_dtype
from flannel_pl.analysis.measuring.skipped import skipped_rows
from flannel_pl.analysis.measuring.token_meter import CLOUD, LATTICE, MOTION, STANDSTILL, Stretch, TokenMeter
from flannel_pl.analysis.measuring.token_sets import token_sets
from flannel_pl.arrays import Array
from flannel_pl.metrics.row_metrics import RowMetric
from flannel_pl.recording.reader import Recording, RunRecording

Advance = Callable[[int], object]
"""Called with the number of recorded bytes that were just measured."""

SCALARS = {
    "loss": ("losses_f32", "losses"),  # the notebook's own files have the second only
    "learning_rate": ("learning_rates",),
    "grad_norm": ("grad_norms",),
}
"""What a scalar is called -> the columns that have it, the best first."""

OF_CENTROIDS = ("centroid_norm", "centroid_drift", "centroid_speed", "path_efficiency", "separation")
"""Metrics that take the centroids of all rows."""

EVERY_SERIES = (*CLOUD, *MOTION, *STANDSTILL, *LATTICE, *OF_CENTROIDS, *OF_OPTIMIZER)
"""Every metric that a report has by itself."""

NO_EMBEDDINGS = "the embeddings are not recorded; --recorder.tensors [embeddings, losses] would"

NO_TOKENS = "no parameter with a row for each token is recorded; recorder.parameter names one"

STRETCH_BYTES = 24 * 2**20
"""Recorded bytes that a thread takes at a time, of all tensors that are read together."""

MAX_THREADS = 8
"""More would take more memory than a gigabyte, and hardly any disk is faster than so many."""


def measure_run(
    recording: Recording,
    index: int,
    *,
    own: Mapping[str, RowMetric] = MappingProxyType({}),
    advance: Advance | None = None,
) -> RunMeasures:
    """Measures one run.

    Args:
        recording: An open recording.
        index: Number of the run.
        own: Name -> somebody's own metric, measured besides.
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
    if not run.has_token_rows:
        return RunMeasures(
            *(index, _label(run), run.steps, {}, _scalars(run), {}, {}, {ALL_METRICS: why_no_tokens(run)}),
            skipped_R=skipped_rows(run),
        )
    sets, left_out = token_sets(recording, run)
    left_out = {f"the {name} tokens": reason for name, reason in left_out.items()}
    skipped_R, trained = skipped_rows(run), trained_dtype(recording, run)
    optimizer = OptimizerMeter(recording, run)
    W = run.tensor("embeddings")
    meter = TokenMeter(W, run.steps, sets, optimizer, skipped_R=skipped_R, trained=trained, own=own)
    of_bits = [name for name, metric in own.items() if metric.of_bits]
    left_out |= _without_lattice(W.dtype, trained, of_bits) | optimizer.left_out
    parts = _all_stretches(meter, len(W), advance or (lambda num_bytes: None))
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


def why_no_tokens(run: RunRecording) -> str:
    """Returns why no token can be measured."""
    is_of_others = "embeddings" in run.names or any(name.endswith("/values") for name in run.names)
    return NO_TOKENS if is_of_others else NO_EMBEDDINGS


def measured_bytes(recording: Recording, index: int) -> int:
    """Returns how many recorded bytes `measure_run` reads; 0 if there are no embeddings to measure."""
    run = recording.run(index)
    if not run.has_token_rows:
        return 0
    W = run.tensor("embeddings")
    return len(W) * (W.row_bytes + OptimizerMeter(recording, run).row_bytes)


def _without_lattice(recorded: str, trained: str, of_bits: Sequence[str]) -> dict[str, str]:
    """Returns what cannot be measured of weights that are not recorded to the bit -> why."""
    if is_exact(recorded, trained):
        return {}
    reason = f"the weights were {trained} and are recorded as {recorded}, which rests at other times"
    if trained not in PARAM_DTYPES and recorded == trained:
        reason = f"the weights are {trained}; this is measured of {' and '.join(PARAM_DTYPES)} only"
    return dict.fromkeys((*STANDSTILL, *LATTICE, LIVES, *of_bits), reason)


def _all_stretches(meter: TokenMeter, num_rows: int, advance: Advance) -> list[Stretch]:
    height = max(1, STRETCH_BYTES // meter.row_bytes)
    stretches = [range(start, min(start + height, num_rows)) for start in range(0, num_rows, height)]
    parts = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for part, rows in zip(threads.map(meter.measure, stretches), stretches, strict=True):
            parts.append(part)
            advance(len(rows) * meter.row_bytes)
    return parts


@np.errstate(invalid="ignore")  # infinite weights, and 0 / 0 before the centroid has moved
def _series(parts: list[Stretch], sets: Mapping[str, Array], skipped_R: Array) -> dict[str, dict[str, Array]]:
    """Joins the stretches, and adds what only the centroids of all rows tell."""
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
