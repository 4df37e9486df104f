"""The tables of a report: which files, what is in them, and their text."""

from collections.abc import Sequence

from flannel_pl.analysis.measuring.token_sets import SET_NAMES
from flannel_pl.analysis.reporting import tables
from flannel_pl.analysis.reporting.published import (
    compare_with_published,
    comparison_csv,
    comparison_markdown,
)
from flannel_pl.analysis.reporting.reported import Reported, named_groups
from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.key_figures import key_figures
from flannel_pl.analysis.words import in_words


def tables_of(experiments: Sequence[Reported]) -> dict[str, tuple[str, str]]:
    """Returns a report's tables.

    Args:
        experiments: Of the report; of several each has its own metrics and tokens, numbered from 1.

    Returns:
        Name of a file -> its text, and what is in it.
    """
    groups = [group for _, group in named_groups(experiments)]
    sets = [one for one in SET_NAMES if any(one in run.series for group in groups for run in group.runs)]
    result = {}
    for number, experiment in enumerate(experiments, start=1):
        suffix, of = (f"_{number}", f" of {experiment.name}") if len(experiments) > 1 else ("", "")
        metrics = tables.metrics_csv(experiment.measures)
        result[f"metrics{suffix}.csv"] = metrics, f"every metric of every run, token set and row{of}"
        tokens = tables.tokens_csv(experiment.measures, experiment.tokens)
        result[f"tokens{suffix}.csv"] = tokens, f"when each token came to rest, in each run{of}"
    for one in sets:
        steps = tables.steps_csv(groups, one)
        result[f"steps_{one}.csv"] = steps, f"mean and std over runs of every metric of {in_words(one)}"
    if distances := tables.distances_csv(groups, sets):
        result["distances.csv"] = distances, "how far runs are from each other, and from their own starts"
    for one in sets:
        figures = [(group, key_figures(group, one)) for group in groups]
        over_runs = tables.key_figures_csv(figures, by_run=False)
        by_run = tables.key_figures_csv(figures, by_run=True)
        result[f"key_figures_{one}.csv"] = over_runs, f"key figures of {in_words(one)}: over runs"
        result[f"key_figures_{one}_by_run.csv"] = by_run, f"key figures of {in_words(one)}: of every run"
    found = [(group.name, epochs) for one in sets for group in groups for epochs in epochs_of(group, one)]
    boundaries = tables.epochs_csv(found)
    result["epochs.csv"] = boundaries, "the epochs by rules A and B, of every run and of the mean"
    compared = [(group.name, lines) for group in groups if (lines := compare_with_published(group))]
    if compared:
        result["published.csv"] = comparison_csv(compared), "upstream's published figures beside these"
        text = "\n".join(f"{name}\n\n{comparison_markdown(lines)}" for name, lines in compared)
        result["published.md"] = text, "the same as a table in Markdown"
    return result
