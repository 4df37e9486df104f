"""Measures as tables: every number as CSV.

Shape suffixes: R rows.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flannel_pl.analysis.measuring.results import Measures
from flannel_pl.analysis.statistics.curves import curves_of, distances_of
from flannel_pl.analysis.statistics.epochs import Mark
from flannel_pl.analysis.statistics.group_epochs import MARKS, MEAN_CURVE, GroupEpochs
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.key_figures import KeyFigure
from flannel_pl.analysis.statistics.series import mean_and_std
from flannel_pl.arrays import Array

METRICS_COLUMNS = ("run", "label", "set", "step")
"""What the columns of `metrics_csv` are called that are no metrics."""


def metrics_csv(measures: Measures) -> str:
    """Returns all series: a line per run, token set and row; the scalars are on the lines of the set "all".

    Args:
        measures: Of one experiment.

    Returns:
        CSV text with a header. A number that is undefined is empty.
    """
    names = _in_order(name for run in measures.runs for series in run.series.values() for name in series)
    scalars = _in_order(name for run in measures.runs for name in run.scalars)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*METRICS_COLUMNS, *names, *scalars])
    for run in measures.runs:
        for token_set, series in (run.series or {"all": {}}).items():
            columns = [series.get(name) for name in names]
            columns += [run.scalars.get(name) if token_set == "all" else None for name in scalars]
            for row, step in enumerate(run.steps_R):
                cells = ["" if column is None else shortest(column[row]) for column in columns]
                writer.writerow([run.run, run.label, token_set, int(step), *cells])
    return text.getvalue()


def steps_csv(groups: Sequence[Group], token_set: str) -> str:
    """Returns mean and sample standard deviation over runs of each series: a line per group and step.

    Args:
        groups: Runs that differ in their seed only, see `groups.groups_of`.
        token_set: dead, live or all.

    Returns:
        CSV text with a header: group, step, then name_mean and name_std of each series. Undefined is empty.
    """
    names = _in_order(
        name for group in groups for run in group.runs for name in run.series.get(token_set, {})
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "step", *(f"{name}_{what}" for name in names for what in ("mean", "std"))])
    for group in groups:
        columns = [column for name in names for column in _mean_and_std(group, token_set, name)]
        num_rows = min(len(run.steps_R) for run in group.runs)
        for row, step in enumerate(group.runs[0].steps_R[:num_rows]):
            cells = ["" if column is None else shortest(column[row]) for column in columns]
            writer.writerow([group.name, int(step), *cells])
    return text.getvalue()


def _mean_and_std(group: Group, token_set: str, name: str) -> tuple[Array | None, Array | None]:
    curves = curves_of([group], token_set, name)
    return mean_and_std(curves[0].values_NR) if curves else (None, None)


def distances_csv(groups: Sequence[Group], token_sets: Iterable[str]) -> str:
    """Returns how far runs are from each other: a line per group, token set and step.

    Args:
        groups: Runs that differ in their seed only.
        token_sets: Of dead, live, all.

    Returns:
        CSV text with a header: mean, sample standard deviation, least and most over pairs of the Frobenius
        distance, mean and std over runs of that from the own start, and the ratio of the means.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("distance_mean", "distance_std", "distance_least", "distance_most")
    writer.writerow(["group", "set", "step", *names, "evolution_mean", "evolution_std", "ratio"])
    for group in groups:
        for token_set in token_sets:
            distances = distances_of(group, token_set)
            if distances is None:
                continue
            between, own = distances
            own_mean_R, own_std_R = mean_and_std(own.values_NR)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio_R = np.where(own_mean_R > 0, between.mean_R / own_mean_R, np.nan)
            least_R, most_R = between.values_NR.min(axis=0), between.values_NR.max(axis=0)
            columns = (*mean_and_std(between.values_NR), least_R, most_R, own_mean_R, own_std_R, ratio_R)
            for row, step in enumerate(between.steps_R):
                cells = [shortest(column[row]) for column in columns]
                writer.writerow([group.name, token_set, int(step), *cells])
    return text.getvalue()


def tokens_csv(measures: Measures, tokens: Mapping[int, Mapping[str, Array]]) -> str:
    """Returns when each token came to rest: a line per run and token.

    Args:
        measures: Of one experiment.
        tokens: Number of a run -> token set -> vocabulary ids, (S,), see `token_sets.token_sets`.

    Returns:
        CSV text with a header: run, label, token, dead (1, 0, or empty where that is not known), then the
        steps of `lifecycle.Lifecycle.result`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _in_order(name for run in measures.runs for named in run.tokens.values() for name in named)
    writer.writerow(["run", "label", "token", "dead", *names])
    for run in measures.runs:
        found = run.tokens.get("all")
        if found is None:
            continue
        ids = tokens[run.run]
        known = "dead" in ids or "live" in ids
        dead = set(ids["dead"].tolist()) if "dead" in ids else set()
        columns = [found[name].tolist() for name in names]
        for position, token in enumerate(ids["all"].tolist()):
            is_dead = int(token in dead) if known else ""
            writer.writerow([run.run, run.label, token, is_dead, *(column[position] for column in columns)])
    return text.getvalue()


def key_figures_csv(groups: Sequence[tuple[Group, Sequence[KeyFigure]]], *, by_run: bool) -> str:
    """Returns key figures: a line per group and figure, or per group, figure and run.

    Args:
        groups: Runs that differ in their seed only, and their key figures.
        by_run: Whether to return the values of the runs, or what they are over all of them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    what = ["run", "value"] if by_run else ["mean", "std", "least", "most", "num_reached", "num_runs"]
    writer.writerow(["group", "figure", *what])
    for group, figures in groups:
        for figure in figures:
            over = figure.over_runs
            if by_run:
                for run, value in zip(group.runs, figure.values, strict=True):
                    writer.writerow(
                        [group.name, figure.name, run.label, "" if value is None else shortest(value)]
                    )
            else:
                numbers = (over.mean, over.std, over.least, over.most)
                cells = ["" if cell is None else shortest(cell) for cell in numbers]
                writer.writerow([group.name, figure.name, *cells, over.num_reached, over.num_runs])
    return text.getvalue()


def epochs_csv(several: Iterable[tuple[str, GroupEpochs]]) -> str:
    """Returns every boundary: a line per group, rule and curve, with step and value, or the reason for none.

    Args:
        several: Name of a group, and what was found in it.

    Returns:
        CSV text with a header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "set", "rule", "run", "boundary", "step", "value", "reason"])
    for name, one in several:
        for label, epochs in zip((MEAN_CURVE, *one.labels), (one.mean, *one.runs), strict=True):
            for mark in MARKS:
                found: Mark = getattr(epochs, mark)
                value = "" if found.value is None else repr(float(found.value))
                step = "" if found.step is None else found.step
                writer.writerow([name, one.token_set, one.rule, label, mark, step, value, found.reason or ""])
    return text.getvalue()


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def shortest(value: float) -> str:
    """Returns the shortest text that is read back as the same float64; empty for NaN."""
    return "" if np.isnan(value) else repr(float(value)).removesuffix(".0")
