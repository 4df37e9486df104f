"""Measures a run's tokens, a stretch of rows at a time: where they are, how they move, when they rest.

Shape suffixes: r rows of a stretch, V recorded tokens, S tokens of a set, D dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from flannel_pl.analysis.measuring.lifecycle import Lifecycle
from flannel_pl.analysis.measuring.optimizer_meter import OptimizerMeter
from flannel_pl.analysis.measuring.settings import is_exact
from flannel_pl.arrays import Array
from flannel_pl.metrics import cloud, lattice
from flannel_pl.metrics.row_metrics import RowMetric, measure_row
from flannel_pl.recording.reader import LazyTensor

MOTION = (
    *("token_speed", "thermal_speed", "radial_fraction", "abs_radial_fraction"),
    *("outward_fraction", "inward_fraction", "zero_fraction"),
)
STANDSTILL = ("frozen_fraction", "zero_component_fraction")
"""These and the lattice say something of the weights only if they are recorded to the bit."""

LATTICE = ("lattice_l1", "lattice_l2", "lattice_linf", "lattice_hop_fraction", "thermal_hop_fraction")
CLOUD = ("origin_radius", "centroid_radius", "bounding_radius", "std_per_dim")


@dataclass
class Stretch:
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
    """Float64."""

    squares_V: Array
    norms_V: Array
    centroids: dict[str, Array]


@dataclass
class _Step:
    """From one row to the next, whose number it has."""

    number: int
    before: _Row
    after: _Row
    dW_VD: Array
    lengths_V: Array


class TokenMeter:
    """Measures stretches of a run's rows, several at the same time.

    Args:
        W: The embeddings.
        steps_R: Step of each row.
        sets: Token set -> positions, (S,) int64.
        optimizer: Measures what the optimizer did.
        skipped_R: Whether the optimizer skipped the step of each row: nothing moved, but nothing stood still.
        trained: The type that the weights had when they were trained.
        own: Name -> somebody's own metric.
    """

    def __init__(
        self,
        W: LazyTensor,
        steps_R: Array,
        sets: Mapping[str, Array],
        optimizer: OptimizerMeter,
        *,
        skipped_R: Array,
        trained: str,
        own: Mapping[str, RowMetric] = MappingProxyType({}),
    ) -> None:
        self.W, self.steps_R, self.sets, self.optimizer = W, steps_R, sets, optimizer
        self.skipped_R, self.trained = skipped_R, trained
        self.has_lattice = is_exact(W.dtype, trained)
        self._own = {name: metric for name, metric in own.items() if self.has_lattice or not metric.of_bits}

    @property
    def row_bytes(self) -> int:
        """Bytes that are read for one row."""
        return self.W.row_bytes + self.optimizer.row_bytes

    @np.errstate(invalid="ignore", over="ignore")  # infinite weights make NaN, which is the answer
    def measure(self, rows: range) -> Stretch:
        """Measures consecutive rows; reads one more, the one before them.

        Raises:
            RunError: If a file cannot be read.
        """
        first = max(0, rows.start - 1)
        stored_RVD = self.W[first : rows.stop]
        others = self.optimizer.read(rows)
        result = self._empty(len(rows))
        before: _Row | None = None
        for number, stored_VD in enumerate(stored_RVD, start=first):
            row = self._row(stored_VD)
            if number in rows:
                position = number - rows.start
                self._measure_cloud(result, position, row)
                moved = before is not None and not self.skipped_R[number]
                self._measure_own(result, position, row, before if moved else None)
                if before is not None and moved:
                    dW_VD = row.W_VD - before.W_VD
                    step = _Step(number, before, row, dW_VD, cloud.token_norms(dW_VD))
                    self._measure_motion(result, position, step)
                    if self.has_lattice:
                        self._measure_lattice(result, position, step)
                    stored = {name: values_rVD[position] for name, values_rVD in others.items()}
                    self._measure_optimizer(result, position, step, stored)
            before = row
        return result

    def _empty(self, num_rows: int) -> Stretch:
        of_lattice = (*STANDSTILL, *LATTICE) if self.has_lattice else ()
        names = (*CLOUD, *MOTION, *of_lattice, *self.optimizer.names, *self._own)
        bins = len(lattice.HISTOGRAM_EDGES) - 1
        dim = self.W.shape[2]
        return Stretch(
            series={one: {name: np.full(num_rows, np.nan) for name in names} for one in self.sets},
            centroids={one: np.empty((num_rows, dim)) for one in self.sets},
            histogram={one: np.zeros((num_rows, bins), np.int64) for one in self.sets},
            lifecycles={one: Lifecycle(len(tokens), dim) for one, tokens in self.sets.items()},
        )

    def _row(self, stored_VD: Array) -> _Row:
        W_VD = lattice.widen(stored_VD).astype(np.float64)
        centroids = {name: cloud.centroid(self._of(W_VD, name)) for name in self.sets}
        squares_V = cloud.dot_products(W_VD, W_VD)
        return _Row(stored_VD, W_VD, squares_V, np.sqrt(squares_V), centroids)

    def _of(self, values: Array, name: str) -> Array:
        """Returns a set's part of an array of all tokens, itself if that is all of it."""
        tokens = self.sets[name]
        return values if len(tokens) == len(values) else values[tokens]

    def _measure_cloud(self, result: Stretch, position: int, row: _Row) -> None:
        for name in self.sets:
            centroid_D, W_SD = row.centroids[name], self._of(row.W_VD, name)
            centred_SD = cloud.centred(W_SD, centroid_D)
            distances_S = cloud.token_norms(centred_SD)
            result.centroids[name][position] = centroid_D
            series = result.series[name]
            series["origin_radius"][position] = cloud.origin_radius(self._of(row.norms_V, name))
            series["centroid_radius"][position] = cloud.centroid_radius(distances_S)
            series["bounding_radius"][position] = cloud.bounding_radius(distances_S)
            series["std_per_dim"][position] = cloud.std_per_dim(centred_SD)

    def _measure_own(self, result: Stretch, position: int, row: _Row, before: _Row | None) -> None:
        before_VD = None if before is None else before.stored_VD
        for place, value in measure_row(self._own, self.sets, row.stored_VD, before_VD).items():
            token_set, _, name = place.partition("/")
            result.series[token_set][name][position] = value

    def _measure_optimizer(
        self, result: Stretch, position: int, step: _Step, stored: Mapping[str, Array]
    ) -> None:
        values = self.optimizer.measure(
            stored,
            row=step.number,
            before_VD=step.before.stored_VD,
            after_VD=step.after.stored_VD,
            dW_VD=step.dW_VD,
            sets=self.sets,
        )
        for name, measured in values.items():
            for metric, value in measured.items():
                result.series[name][metric][position] = value

    def _measure_motion(self, result: Stretch, position: int, step: _Step) -> None:
        before, after, dW_VD, lengths_V = step.before, step.after, step.dW_VD, step.lengths_V
        radial_V = cloud.radial_fractions(before.W_VD, dW_VD, before.norms_V, lengths_V)
        change_V = cloud.radius_changes(before.W_VD, after.W_VD, before.squares_V, after.squares_V)
        for name in self.sets:
            series = result.series[name]
            dc_D = after.centroids[name] - before.centroids[name]
            radial_S = self._of(radial_V, name)
            series["token_speed"][position] = cloud.mean(self._of(lengths_V, name))
            thermal_S = cloud.token_norms(cloud.centred(self._of(dW_VD, name), dc_D))
            series["thermal_speed"][position] = cloud.mean(thermal_S)
            series["radial_fraction"][position] = cloud.mean_or_nan(radial_S)
            series["abs_radial_fraction"][position] = cloud.mean_or_nan(np.abs(radial_S))
            outward, inward, zero = cloud.sign_fractions(self._of(change_V, name))
            series["outward_fraction"][position] = outward
            series["inward_fraction"][position] = inward
            series["zero_fraction"][position] = zero

    def _measure_lattice(self, result: Stretch, position: int, step: _Step) -> None:
        before, dW_VD = step.before, step.dW_VD
        before_VD = lattice.widen(before.stored_VD).astype(np.float32, copy=False)
        ulp_VD = lattice.ulp(before_VD, self.trained)
        l1_V, l2_V, linf_V = lattice.lattice_norms(lattice.displacement(dW_VD, ulp_VD))
        hops_V = lattice.hop_classes(step.lengths_V, ulp_VD.mean(axis=1, dtype=np.float64))
        changed_V = lattice.changed(before.stored_VD, step.after.stored_VD)
        number = int(self.steps_R[step.number])
        zeros_V = np.count_nonzero(dW_VD == 0, axis=1) / dW_VD.shape[1]
        for name in self.sets:
            series = result.series[name]
            series["frozen_fraction"][position] = 1 - self._of(changed_V, name).mean()
            series["zero_component_fraction"][position] = cloud.mean(self._of(zeros_V, name))
            l1_S, l2_S, linf_S = (self._of(norms_V, name) for norms_V in (l1_V, l2_V, linf_V))
            series["lattice_l1"][position] = cloud.mean(l1_S)
            series["lattice_l2"][position] = cloud.mean(l2_S)
            series["lattice_linf"][position] = cloud.mean(linf_S)
            hops_S = self._of(hops_V, name)
            series["lattice_hop_fraction"][position] = (hops_S == lattice.LATTICE).mean()
            series["thermal_hop_fraction"][position] = (hops_S == lattice.THERMAL).mean()
            result.histogram[name][position] = lattice.histogram(l2_S)
            result.lifecycles[name].update(number, self._of(changed_V, name), l1_S, l2_S, linf_S)
