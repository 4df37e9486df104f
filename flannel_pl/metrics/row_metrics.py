"""Metrics of one row: those that can be measured while training goes on, and anybody's own.

Each is a value of one kind, `RowMetric`. Those of the table below say of a row what `flannel-pl report` says
of it, to the bit: both use the same functions. Another is a line of the table, or anybody's, by its import
path: `recorder.live` logs it, `flannel-pl report --metrics` draws it.

Shape suffixes: V recorded tokens, S tokens of a set, D dimensions.
"""

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError, raised_at
from flannel_pl.metrics import cloud, lattice


class Moment:
    """A set of tokens in one row, and in the row before it; nothing is computed twice, nor unless asked for.

    Its arrays are read-only: every metric is given the same ones.

    Args:
        stored_SD: As recorded.
        before_SD: The row before, as recorded; None if there is none, or if nothing moved because no step
            was taken.
    """

    def __init__(self, stored_SD: Array, before_SD: Array | None) -> None:
        self.stored_SD = _sealed(stored_SD)
        self._before_SD = None if before_SD is None else _sealed(before_SD)

    @property
    def before_SD(self) -> Array:
        """The row before, as recorded."""
        if self._before_SD is None:
            raise ValueError(
                "there is no row before; of a metric of motion say RowMetric(..., of_motion=True)"
            )
        return self._before_SD

    @cached_property
    def W_SD(self) -> Array:
        """The weights, float64."""
        return _sealed(_exact(self.stored_SD))

    @cached_property
    def centred_SD(self) -> Array:
        """The weights as seen from the set's centroid."""
        return _sealed(cloud.centred(self.W_SD, cloud.centroid(self.W_SD)))

    @cached_property
    def dW_SD(self) -> Array:
        """The step from the row before, float64."""
        return _sealed(self.W_SD - _exact(self.before_SD))


@dataclass(frozen=True)
class Drawn:
    """How a report shows a metric."""

    heading: str
    label: str
    """Of the axis."""

    caption: str
    """How to read the figure."""

    formula: str


@dataclass(frozen=True)
class RowMetric:
    """A number for each set of tokens and row.

    Example:
        >>> largest = RowMetric(lambda tokens: float(abs(tokens.W_SD).max()), "largest weight, as a distance")
        >>> largest.measure(Moment(np.float32([[3, -4]]), None))
        4.0
    """

    measure: Callable[[Moment], float]
    meaning: str
    of_motion: bool = False
    """Whether it compares with the row before: then row 0 has none, nor has a step that was left out."""

    of_bits: bool = False
    """Whether it would say something else of weights that are not recorded to the bit."""

    drawn: Drawn | None = None
    """How a report draws it; None = only in the tables."""


ROW_METRICS = {
    "origin_radius": RowMetric(
        lambda tokens: cloud.origin_radius(cloud.token_norms(tokens.W_SD)), "mean distance from the origin"
    ),
    "centroid_radius": RowMetric(
        lambda tokens: cloud.centroid_radius(cloud.token_norms(tokens.centred_SD)),
        "mean distance from the set's centroid",
    ),
    "speed": RowMetric(
        lambda tokens: cloud.mean(cloud.token_norms(tokens.dW_SD)),
        "mean length of the tokens' steps, the report's token_speed",
        of_motion=True,
    ),
    "frozen_fraction": RowMetric(
        lambda tokens: 1 - float(lattice.changed(tokens.before_SD, tokens.stored_SD).mean()),
        "fraction of the tokens of which no bit has changed",
        of_motion=True,
        of_bits=True,
    ),
}
"""Name -> what is measured. A further one is a further line."""


def find_metrics(
    names: Iterable[str], *, option: str, table: Mapping[str, RowMetric] = ROW_METRICS
) -> dict[str, RowMetric]:
    """Returns metrics by their short names.

    Args:
        names: Those of the table, or import paths, whose last part is the short name.
        option: Who asks, for messages.
        table: Those that need no import path.

    Raises:
        UserError: If there is none of that name, or two have the same.
    """
    found: dict[str, RowMetric] = {}
    for name in names:
        short = name.rpartition(".")[2]
        if short in ROW_METRICS and name not in table:
            raise UserError(
                f"{option} has {name!r}, but {short} is one of flannel-pl's own; give yours another name"
            )
        if short in found:
            raise UserError(f"{option} has two metrics {short}; give one of them another name")
        found[short] = table[name] if name in table else _imported(name, option, table)
    return found


def _imported(name: str, option: str, table: Collection[str]) -> RowMetric:
    place, _, attribute = name.rpartition(".")
    known = f"some of {', '.join(table)}, or " if table else ""
    expected = f"expected {known}the import path of a RowMetric, e.g. my_lab.alignment"
    if not place:
        raise UserError(f"{option} has {name!r}, {expected}")
    try:
        metric = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option} has {name!r}, {expected}: {error}") from error
    if not isinstance(metric, RowMetric):
        raise UserError(f"{option} has {name!r}, which is a {type(metric).__name__}, {expected}")
    return metric


@np.errstate(invalid="ignore", over="ignore")  # infinite weights make NaN, which is the answer
def measure_row(
    metrics: Mapping[str, RowMetric],
    sets: Mapping[str, Array],
    stored_VD: Array,
    before_VD: Array | None,
) -> dict[str, float]:
    """Measures one row.

    Args:
        metrics: Name -> metric.
        sets: Token set -> positions in the row, (S,) int64, at least one.
        stored_VD: The row as recorded, any float type.
        before_VD: The row before; None leaves the metrics of motion out.

    Returns:
        "set/name" -> value.

    Raises:
        UserError: If a metric fails, or gives no number.

    Example:
        >>> rows = np.float32([[[3, 4], [0, 0]], [[3, 4], [0, 1]]])
        >>> metrics = find_metrics(["origin_radius", "speed"], option="x")
        >>> measure_row(metrics, {"all": np.arange(2)}, rows[1], rows[0])
        {'all/origin_radius': 3.0, 'all/speed': 0.5}
    """
    values = {}
    for one, tokens in sets.items():
        moment = Moment(_of(stored_VD, tokens), None if before_VD is None else _of(before_VD, tokens))
        for name, metric in metrics.items():
            if before_VD is not None or not metric.of_motion:
                values[f"{one}/{name}"] = _number(name, metric, moment)
    return values


def _number(name: str, metric: RowMetric, moment: Moment) -> float:
    try:
        value: Any = metric.measure(moment)
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise UserError(f"the metric {name} failed with {kind}: {error} ({raised_at(error)})") from error
    if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf":
        return float(value)
    found = f"{type(value).__name__} of shape {np.shape(value)}" if np.ndim(value) else repr(value)
    raise UserError(f"the metric {name} has measured {found}, expected one number")


def _of(values_VD: Array, tokens: Array) -> Array:
    """Returns a set's part of a row, itself if that is all of it."""
    return values_VD if len(tokens) == len(values_VD) else values_VD[tokens]


def _sealed(values_SD: Array) -> Array:
    """Returns a view that nobody can write to."""
    view: Array = values_SD.view()
    view.flags.writeable = False
    return view


def _exact(stored_SD: Array) -> Array:
    return lattice.widen(stored_SD).astype(np.float64)
