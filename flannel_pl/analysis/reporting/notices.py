"""What a reader of a report has to know: what casts doubt on its numbers, and what it lacks."""

from collections.abc import Iterator, Sequence

import numpy as np

from flannel_pl.analysis.drawing.gallery import Kind
from flannel_pl.analysis.measuring.results import ALL_METRICS
from flannel_pl.analysis.reporting.reported import Reported
from flannel_pl.analysis.statistics.group_epochs import GroupEpochs
from flannel_pl.analysis.words import counted, in_words


def warnings(
    experiments: Sequence[Reported],
    epochs: Sequence[tuple[str, GroupEpochs]],
    *,
    asked: str,
    shown: str,
) -> list[str]:
    """Returns what a reader has to know before the numbers.

    Args:
        experiments: Of the report.
        epochs: Name of a group of runs, and what was found in it.
        asked: The token set that was asked for.
        shown: The one that is shown.
    """
    found = []
    if asked != shown:
        found.append(f"Not every run has {in_words(asked)}: figures and words are about {in_words(shown)}.")
    found += [text for one in experiments for text in _of_recording(one)]
    for name, one_rule in epochs:
        if doubtful := one_rule.warnings:
            more = f" (and {counted(len(doubtful) - 1, 'more curve')})" if len(doubtful) > 1 else ""
            found.append(f"{name}, {doubtful[0]}{more}.")
    return found


def _of_recording(one: Reported) -> Iterator[str]:
    missing = one.background.missing_runs
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        runs = ", ".join(map(str, missing))
        number = counted(len(missing), "run")
        yield f"{one.name}: {number} of the experiment {verb} not in this recording ({runs})."
    measured = one.measures.runs
    for words, runs_of in one.background.rounding.items():
        numbers = ", ".join(map(str, runs_of))
        some = f", run {numbers}" if len(runs_of) < len(measured) else ""
        yield f"{one.name}{some}: {words}."
    if len({len(run.steps_R) for run in measured}) > 1:
        end = min(int(run.steps_R[-1]) for run in measured)
        yield (
            f"{one.name}: not all runs are of the same length; what is said of runs together ends where the "
            f"shortest does, at step {end}."
        )
    for run in measured:
        if skips := int(np.count_nonzero(run.skipped_R)):
            first = run.steps_R[run.skipped_R][0]
            yield (
                f"{one.name}, {run.label}: the optimizer skipped {counted(skips, 'step')}, the first one "
                f"{first}, as it does when gradients are not finite, or when there are none because "
                "training_step returned None. That nothing moved there is not taken for rest."
            )
        radius_R = run.series.get("all", {}).get("origin_radius", np.zeros(0))
        rows = np.flatnonzero(~np.isfinite(radius_R))
        if len(rows):
            yield (
                f"{one.name}, {run.label}: weights are not finite from step {run.steps_R[rows[0]]} on. From "
                "there means over runs are over the others."
            )


def left_out(experiments: Sequence[Reported], pictures: Sequence[Kind]) -> list[tuple[str, str]]:
    """Returns what could not be computed or drawn, and why.

    Args:
        experiments: Of the report.
        pictures: The figures that were not drawn.
    """
    lines = []
    for one in experiments:
        where = f"{one.name}: " if len(experiments) > 1 else ""
        lines += [(where + name, reason) for name, reason in one.measures.left_out.items()]
        runs_of: dict[tuple[str, str], list[str]] = {}
        for run in one.measures.runs:
            for pair in run.left_out.items():
                runs_of.setdefault(pair, []).append(run.label)
        for (name, reason), runs in runs_of.items():
            some = f" ({', '.join(runs)})" if len(runs) < len(one.measures.runs) else ""
            lines.append((where + name, reason + some))
    return lines + [(f"figure: {kind.heading}", _why_not(kind, experiments)) for kind in pictures]


def _why_not(kind: Kind, experiments: Sequence[Reported]) -> str:
    """Returns why there is no such figure: why what it shows was not measured, if it was not in any run."""
    reasons = [
        run.left_out.get(kind.shows, run.left_out.get(ALL_METRICS) if kind.shows else None)
        for one in experiments
        for run in one.measures.runs
    ]
    known = [reason for reason in reasons if reason is not None]
    return known[0] if len(known) == len(reasons) > 0 else f"it needs {kind.needs}"
