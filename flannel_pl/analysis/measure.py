"""Streams recordings through the metrics, a few rows of a run at a time, on all cores.

Nothing but the rows at hand and one number per row and metric is in memory, so a recording may be as large
as it likes. Stretches of rows are independent: each begins with the row before it.

Shape suffixes: R rows, V recorded tokens, S tokens of a set, D dimensions, N runs, P pairs of runs.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.analysis import lattice, metrics
from flannel_pl.analysis.divergence import Divergence
from flannel_pl.analysis.lifecycle import Lifecycle
from flannel_pl.analysis.sets import token_sets
from flannel_pl.errors import UserError
from flannel_pl.recording.reader import Recording, RunRecording
from flannel_pl.recording.tensors import Array, LazyTensor

Advance = Callable[[int], object]
"""Called with the number of recorded bytes that were just measured."""

STRETCH_BYTES = 24 * 2**20
"""Recorded bytes that a thread takes at a time."""

MOTION = (
    *("token_speed", "thermal_speed", "radial_fraction", "abs_radial_fraction"),
    *("outward_fraction", "inward_fraction", "zero_fraction"),
    *("frozen_fraction", "zero_component_fraction"),
)
LATTICE = ("lattice_l1", "lattice_l2", "lattice_linf", "lattice_hop_fraction", "thermal_hop_fraction")
CLOUD = ("origin_radius", "centroid_radius", "bounding_radius", "std_per_dim")
LATTICE_DTYPES = ("bfloat16", "float32")


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
    """Token set -> metric -> (R,) float64; NaN where it is undefined, e.g. motion in row 0."""

    scalars: dict[str, Array]
    """loss, learning_rate, grad_norm, as far as they are recorded -> (R,) float64."""

    tokens: dict[str, dict[str, Array]]
    """Token set -> freeze_step, early_end, midlife_end, late_end -> (S,) int64, see `lifecycle`."""

    histogram: dict[str, Array]
    """Token set -> (R, bins) int64: tokens by the L2 norm of their lattice displacement."""

    left_out: dict[str, str]
    """Metric -> why it could not be computed."""


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

    Raises:
        UserError: If the embeddings were not recorded.
        RunError: If a file cannot be read.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:      # doctest: +SKIP
        ...     measures = measure_run(recording, 0)
        >>> measures.series["dead"]["origin_radius"][-1]                         # doctest: +SKIP
    """
    run = recording.run(index)
    if "embeddings" not in run.names:
        raise UserError(
            f"run {index} of {recording.path} has no embeddings (it has {', '.join(run.names)}), and every "
            "metric is about them; record them with --recorder.tensors [embeddings, losses]"
        )
    sets, left_out = token_sets(recording, run)
    left_out = {f"the {name} tokens": reason for name, reason in left_out.items()}
    W = run.tensor("embeddings")
    if W.dtype not in LATTICE_DTYPES:
        reason = f"the embeddings are recorded as {W.dtype}, whose lattice is not that of the weights"
        left_out |= dict.fromkeys(LATTICE, reason)
    meter = _Meter(W, run.steps, sets)
    advance = advance or (lambda num_bytes: None)
    stretches = list(_stretches(W))
    parts: list[_Stretch] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for part, rows in zip(threads.map(meter.measure, stretches), stretches, strict=True):
            parts.append(part)
            advance(len(rows) * W.row_bytes)
    return RunMeasures(
        run=index,
        label=_label(run),
        steps_R=run.steps,
        series=_series(parts, sets),
        scalars=_scalars(run),
        tokens={name: _tokens(parts, name, run.steps) for name in sets} if meter.has_lattice else {},
        histogram={
            name: np.concatenate([part.histogram[name] for part in parts])
            for name in (sets if meter.has_lattice else ())
        },
        left_out=left_out,
    )


@dataclass
class _Stretch:
    """What some rows give, r of them."""

    series: dict[str, dict[str, Array]]
    centroids: dict[str, Array]
    """Token set -> (r, D) float64."""

    histogram: dict[str, Array]
    lifecycles: dict[str, Lifecycle]


@dataclass
class _Row:
    """One row, and what the next one needs of it."""

    stored_VD: Array
    W_VD: Array
    norms_V: Array
    centroids: dict[str, Array]


class _Meter:
    """Measures stretches of a run's rows, several at the same time."""

    def __init__(self, W: LazyTensor, steps_R: Array, sets: Mapping[str, Array]) -> None:
        self.W, self.steps_R, self.sets = W, steps_R, sets
        self.has_lattice = W.dtype in LATTICE_DTYPES

    def measure(self, rows: range) -> _Stretch:
        with np.errstate(invalid="ignore", over="ignore"):  # infinite weights make NaN, which is the answer
            return self._measure(rows)

    def _measure(self, rows: range) -> _Stretch:
        first = max(0, rows.start - 1)
        stored_RVD = self.W[first : rows.stop]
        result = self._empty(len(rows))
        before: _Row | None = None
        for number, stored_VD in enumerate(stored_RVD, start=first):
            row = self._row(stored_VD)
            if number in rows:
                position = number - rows.start
                self._measure_cloud(result, position, row)
                if before is not None:
                    self._measure_motion(result, position, before, row, step=int(self.steps_R[number]))
            before = row
        return result

    def _empty(self, num_rows: int) -> _Stretch:
        names = (*CLOUD, *MOTION, *(LATTICE if self.has_lattice else ()))
        bins = len(lattice.HISTOGRAM_EDGES) - 1
        dim = self.W.shape[2]
        return _Stretch(
            series={one: {name: np.full(num_rows, np.nan) for name in names} for one in self.sets},
            centroids={one: np.empty((num_rows, dim)) for one in self.sets},
            histogram={one: np.zeros((num_rows, bins), np.int64) for one in self.sets},
            lifecycles={one: Lifecycle(len(tokens), dim) for one, tokens in self.sets.items()},
        )

    def _row(self, stored_VD: Array) -> _Row:
        W_VD = lattice.widen(stored_VD)
        centroids = {name: metrics.centroid(self._of(W_VD, name)) for name in self.sets}
        return _Row(stored_VD, W_VD, metrics.token_norms(W_VD), centroids)

    def _of(self, values: Array, name: str) -> Array:
        """Returns a set's part of an array of all tokens, itself if that is all of it."""
        tokens = self.sets[name]
        return values if len(tokens) == len(values) else values[tokens]

    def _measure_cloud(self, result: _Stretch, position: int, row: _Row) -> None:
        for name in self.sets:
            centroid_D, W_SD = row.centroids[name], self._of(row.W_VD, name)
            centred_SD = metrics.centred(W_SD, centroid_D)
            distances_S = metrics.token_norms(centred_SD)
            result.centroids[name][position] = centroid_D
            series = result.series[name]
            series["origin_radius"][position] = metrics.origin_radius(self._of(row.norms_V, name))
            series["centroid_radius"][position] = metrics.centroid_radius(distances_S)
            series["bounding_radius"][position] = metrics.bounding_radius(distances_S)
            series["std_per_dim"][position] = metrics.std_per_dim(centred_SD)

    def _measure_motion(self, result: _Stretch, position: int, before: _Row, row: _Row, *, step: int) -> None:
        dW_VD = row.W_VD - before.W_VD
        lengths_V = metrics.token_norms(dW_VD)
        radial_V = metrics.radial_fractions(before.W_VD, dW_VD, before.norms_V, lengths_V)
        change_V = row.norms_V - before.norms_V
        changed_V = lattice.changed(before.stored_VD, row.stored_VD)
        zeros_V = np.count_nonzero(dW_VD == 0, axis=1) / dW_VD.shape[1]
        for name in self.sets:
            series = result.series[name]
            dc_D = row.centroids[name] - before.centroids[name]
            radial_S = self._of(radial_V, name)
            series["token_speed"][position] = metrics.mean(self._of(lengths_V, name))
            thermal_S = metrics.token_norms(metrics.centred(self._of(dW_VD, name), dc_D))
            series["thermal_speed"][position] = metrics.mean(thermal_S)
            series["radial_fraction"][position] = metrics.mean_or_nan(radial_S)
            series["abs_radial_fraction"][position] = metrics.mean_or_nan(np.abs(radial_S))
            outward, inward, zero = metrics.sign_fractions(self._of(change_V, name))
            series["outward_fraction"][position] = outward
            series["inward_fraction"][position] = inward
            series["zero_fraction"][position] = zero
            series["frozen_fraction"][position] = 1 - self._of(changed_V, name).mean()
            series["zero_component_fraction"][position] = metrics.mean(self._of(zeros_V, name))
        if self.has_lattice:
            self._measure_lattice(result, position, before, dW_VD, lengths_V, changed_V, step=step)

    def _measure_lattice(
        self,
        result: _Stretch,
        position: int,
        before: _Row,
        dW_VD: Array,
        lengths_V: Array,
        changed_V: Array,
        *,
        step: int,
    ) -> None:
        ulp_VD = lattice.ulp(before.W_VD, self.W.dtype)
        l1_V, l2_V, linf_V = lattice.lattice_norms(lattice.displacement(dW_VD, ulp_VD))
        hops_V = lattice.hop_classes(lengths_V, ulp_VD.mean(axis=1))
        for name in self.sets:
            series = result.series[name]
            l1_S, l2_S, linf_S = (self._of(norms_V, name) for norms_V in (l1_V, l2_V, linf_V))
            series["lattice_l1"][position] = metrics.mean(l1_S)
            series["lattice_l2"][position] = metrics.mean(l2_S)
            series["lattice_linf"][position] = metrics.mean(linf_S)
            hops_S = self._of(hops_V, name)
            series["lattice_hop_fraction"][position] = (hops_S == lattice.LATTICE).mean()
            series["thermal_hop_fraction"][position] = (hops_S == lattice.THERMAL).mean()
            result.histogram[name][position] = lattice.histogram(l2_S)
            result.lifecycles[name].update(step, self._of(changed_V, name), l1_S, l2_S, linf_S)


def _stretches(W: LazyTensor) -> Iterator[range]:
    num_rows = max(1, STRETCH_BYTES // W.row_bytes)
    for start in range(0, len(W), num_rows):
        yield range(start, min(start + num_rows, len(W)))


def _series(parts: list[_Stretch], sets: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Joins the stretches, and adds what only the centroids of all rows tell."""
    with np.errstate(invalid="ignore"):  # infinite weights, and 0 / 0 before the centroid has moved
        return _joined(parts, sets)


def _joined(parts: list[_Stretch], sets: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    result: dict[str, dict[str, Array]] = {}
    centroids = {name: np.concatenate([part.centroids[name] for part in parts]) for name in sets}
    for name, centroids_RD in centroids.items():
        series = {
            key: np.concatenate([part.series[name][key] for part in parts]) for key in parts[0].series[name]
        }
        series["centroid_norm"] = np.linalg.norm(centroids_RD, axis=1)
        series["centroid_drift"] = np.linalg.norm(centroids_RD - centroids_RD[0], axis=1)
        speeds = np.linalg.norm(np.diff(centroids_RD, axis=0), axis=1)
        series["centroid_speed"] = np.concatenate([[np.nan], speeds])
        path = np.concatenate([[0.0], np.cumsum(speeds)])
        series["path_efficiency"] = series["centroid_drift"] / path
        result[name] = series
    if "dead" in centroids and "live" in centroids:
        apart_RD = centroids["live"] - centroids["dead"]
        result["all"]["separation"] = np.linalg.norm(apart_RD, axis=1)
    return result


def _tokens(parts: list[_Stretch], name: str, steps_R: Array) -> dict[str, Array]:
    """Joins the stretches' lives of the tokens."""
    whole, *later = (part.lifecycles[name] for part in parts)
    for one in later:
        whole.merge(one)
    result: dict[str, Array] = whole.result(int(steps_R[-1]))
    return result


def _scalars(run: RunRecording) -> dict[str, Array]:
    columns = {"loss": "losses_f32", "learning_rate": "learning_rates", "grad_norm": "grad_norms"}
    return {
        name: np.asarray(run.tensor(column)).astype(np.float64)
        for name, column in columns.items()
        if column in run.names
    }


def _label(run: RunRecording) -> str:
    words: list[Any] = [f"run {run.index}" if run.seed is None else f"seed {run.seed}"]
    words += [f"{key} {value}" for key, value in run.swept.items()]
    return ", ".join(words)
