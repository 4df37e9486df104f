"""What a report says in words and tables: from measures to the parts of its page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from flannel_pl.analysis.drawing.gallery import Kind
from flannel_pl.analysis.drawing.panels import Band
from flannel_pl.analysis.reporting.background import Background
from flannel_pl.analysis.reporting.meanings import meaning_of, meanings_of
from flannel_pl.analysis.reporting.notices import left_out, warnings
from flannel_pl.analysis.reporting.page import Page, Picture, Table
from flannel_pl.analysis.reporting.published import (
    HEADER,
    LAST_STEP,
    TOKEN_SET,
    BesidePublished,
    compare_with_published,
    comparison_cells,
    end_of,
    other_settings,
)
from flannel_pl.analysis.reporting.reported import Reported, named_groups
from flannel_pl.analysis.statistics.group_epochs import MARKS, MEAN_CURVE, GroupEpochs, epochs_of
from flannel_pl.analysis.statistics.group_numbers import NONE, Find, distance_at, mean_loss, series_at
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.key_figures import KeyFigure, key_figures
from flannel_pl.analysis.statistics.series import Spread
from flannel_pl.analysis.words import counted, in_words, number, plus_minus

RULES = {
    "A": "Rule A: the inhale ends at the smallest origin radius of steps 0 to 10; the sneeze peaks where the "
    "growth of the radius per step, smoothed over 5 steps, is largest; Fimbulwinter begins at the first step "
    "after 100 and after the sneeze at which that growth is below 1 % of its peak.",
    "B": "Rule B: the inhale ends at the smallest origin radius of steps 0 to 19; the sneeze peaks where the "
    "radius grows most from one row to the next, which is not smoothed: so it may peak some steps before or "
    "after rule A's; the re-expansion begins where the growth, smoothed, is "
    "least between that and the freeze, if it rises again; Fimbulwinter begins at the first step after the "
    "sneeze at which more than 90 % of the tokens do not move (some may thaw again).",
}


EPOCHS_ARE = (
    "The inhale goes from step 0 to its end, the sneeze from there to its peak, the deceleration "
    "from that peak, while the cloud slows down, to the re-expansion (which rule A does not know) or "
    "Fimbulwinter, or else to the end of the recording; Fimbulwinter is the rest after it."
)

THEN = {"inhale": "sneeze begins", "sneeze": "deceleration begins"}
"""What a boundary is besides what `MARKS` calls it."""

PUBLISHED_ARE = (
    "Published: ten seeds on the notebook's own text, trained on Apple's MPS, with standard "
    "deviations of the population; here they are of the sample. Pairs of runs are not independent of "
    "each other."
)

DIFFERENCE = (
    "The difference is in published standard deviations; where none was published, in those of this "
    "recording's runs. A figure of the mean curve has no standard deviation, and none is put in its place."
)

SOURCES = (
    "The source is the number of the notebook that prints the figure, in the repository of the experiment's "
    "author, Embedding-Space/Azimuth_II (train_loss: its trainer)."
)


def bands_of(experiments: Sequence[Reported], token_set: str) -> list[Band]:
    """Returns the epochs to shade in figures: by rule A of the mean curve, if there is one group."""
    groups = named_groups(experiments)
    if len(groups) > 1:
        return []
    found = epochs_of(groups[0][1], token_set)
    return found[0].mean.intervals(found[0].last_step) if found else []


def page_of(
    experiments: Sequence[Reported],
    token_set: str,
    *,
    asked: str,
    pictures: Sequence[Picture],
    missing: Sequence[Kind],
    files: Sequence[tuple[str, str]],
) -> Page:
    """Returns the page of a report.

    Args:
        experiments: What was measured.
        token_set: dead, live or all, which all runs have.
        asked: The token set that was asked for.
        pictures: The figures.
        missing: The figures that could not be drawn.
        files: Name of each table, and what is in it.
    """
    groups = named_groups(experiments)
    epochs = [(group.name, found) for _, group in groups for found in epochs_of(group, token_set)]
    compared = [(one, group, compare_with_published(group)) for one, group in groups]
    named = [(group, key_figures(group, token_set)) for _, group in groups]
    several = len(experiments) > 1
    lacking = left_out(experiments, missing)
    names = [figure.name for _, figures in named for figure in figures] + [name for name, _ in lacking]
    return Page(
        title=" and ".join(one.name for one in experiments),
        lead=lead(experiments, token_set),
        warnings=warnings(experiments, epochs, asked=asked, shown=token_set),
        recorded=() if several else experiments[0].background.facts,
        recorded_tables=[side_by_side(experiments)] if several else (),
        key_figures=cards(groups[0][1], token_set) if len(groups) == 1 else (),
        key_tables=[key_figure_table(named, token_set)],
        epochs=[epoch_table(name, found) for name, found in epochs],
        comparison=[published_table(group, lines, one.background) for one, group, lines in compared if lines],
        pictures=pictures,
        left_out=lacking,
        meanings=meanings_of(names),
        provenance=_of_each(experiments, lambda one: one.background.provenance),
        files=files,
    )


def _of_each(
    experiments: Sequence[Reported], pick: Callable[[Reported], Sequence[tuple[str, str]]]
) -> list[tuple[str, str]]:
    several = len(experiments) > 1
    return [
        (f"{one.name}: {name}" if several else name, value)
        for one in experiments
        for name, value in pick(one)
    ]


def side_by_side(experiments: Sequence[Reported]) -> Table:
    """Returns what was recorded, a column for each experiment."""
    facts = [dict(one.background.facts) for one in experiments]
    names = dict.fromkeys(name for one in facts for name in one)
    rows = [[name, *(one.get(name, "-") for one in facts)] for name in names]
    return Table("Recordings side by side", ["", *(one.name for one in experiments)], rows)


def lead(experiments: Sequence[Reported], token_set: str) -> str:
    """Returns the sentence below the title."""
    several = [f"{counted(len(one.measures.runs), 'run')} of {one.name}" for one in experiments]
    return f"{', '.join(several)}: what training did to {in_words(token_set)}."


def cards(group: Group, token_set: str) -> list[tuple[str, str, str]]:
    """Returns the figures at the head of the page: name, value, remark."""
    start_end: tuple[tuple[str, Callable[[int | None], Find]], ...] = (
        ("origin radius", partial(series_at, token_set, "origin_radius")),
        ("centroid radius", partial(series_at, token_set, "centroid_radius")),
        ("distance between runs", partial(distance_at, token_set)),
    )
    found = []
    for name, at in start_end:
        before, after = at(0)(group), at(None)(group)
        if before.mean is not None and after.mean is not None:
            same_runs = before.num_reached == after.num_reached and before.mean
            times = f", {after.mean / before.mean:.2f} times the start's" if same_runs else ""
            remark = f"at the end{times}; {plus_minus(before.mean, before.std)} at the start{_runs(after)}"
            found.append((name, plus_minus(after.mean, after.std), remark))
    found_epochs = epochs_of(group, token_set)
    for mark, words in MARKS.items() if found_epochs else ():
        found += _epoch_card(found_epochs[0], mark, words)
    frozen = series_at(token_set, "frozen_fraction", None)
    for name, find, remark in (
        ("frozen at the end", frozen, "of the tokens, in the last row"),
        ("loss", mean_loss(), "mean over the recorded steps, in nats"),
    ):
        over = find(group)
        if over.mean is not None:
            found.append((name, plus_minus(over.mean, over.std), remark + _runs(over)))
    return found


def _epoch_card(epochs: GroupEpochs, mark: str, words: str) -> list[tuple[str, str, str]]:
    """Returns the card of one boundary; none if neither a run nor the mean curve has it."""
    step, over_runs = getattr(epochs.mean, mark).step, epochs.over_runs(mark)
    rule = f"by rule {epochs.rule}"
    if len(epochs.runs) == 1:
        return [] if step is None else [(words, number(step), f"step, {rule}")]
    if over_runs.least is None or over_runs.most is None:
        return [] if step is None else [(words, number(step), f"step of the {MEAN_CURVE}, {rule}; of no run")]
    runs = f"{number(over_runs.least)} to {number(over_runs.most)}{_runs(over_runs)}"
    if step is None:
        return [(words, runs, f"steps of the runs, {rule}; the {MEAN_CURVE} has none")]
    return [(words, number(step), f"step of the {MEAN_CURVE}, {rule}; of the runs: {runs}")]


def _runs(over: Spread) -> str:
    missing = over.num_reached < over.num_runs
    return f" ({over.num_reached} of {over.num_runs} runs)" if missing else ""


def key_figure_table(named: Sequence[tuple[Group, Sequence[KeyFigure]]], token_set: str) -> Table:
    """Returns all key figures, a column for each group of runs."""
    names = dict.fromkeys(figure.name for _, figures in named for figure in figures)
    columns = [{figure.name: figure.over_runs for figure in figures} for _, figures in named]
    rows = [[name, *(_cell(column.get(name, NONE)) for column in columns)] for name in names]
    note = (
        "Mean over runs and sample standard deviation; in brackets how many runs have the number, if not "
        "all. The CSV files have every run's. What the names mean is said where the pointer rests on "
        "them, and in the list below."
    )
    header = ["figure", *(group.name for group, _ in named)]
    titles = {name: meaning_of(name) for name in names}
    return Table(f"Key figures of {in_words(token_set)}", header, rows, note, titles=titles)


def _cell(over: Spread) -> str:
    return plus_minus(over.mean, over.std) + (_runs(over) if over.num_reached else "")


def epoch_table(name: str, epochs: GroupEpochs) -> Table:
    """Returns where one rule finds the epochs' boundaries: in the mean curve, over runs, in each run."""
    marks = {mark: words for mark, words in MARKS.items() if epochs.rule == "B" or mark != "re_expansion"}
    rows = [[MEAN_CURVE, *(number(getattr(epochs.mean, mark).step) for mark in marks)]]
    if len(epochs.runs) > 1:
        spreads = [epochs.over_runs(mark) for mark in marks]
        rows.append(["runs: mean ± std", *(_cell(one) for one in spreads)])
        ranges = [
            "-" if one.least is None or one.most is None else f"{number(one.least)} to {number(one.most)}"
            for one in spreads
        ]
        rows.append(["runs: range", *ranges])
    for label, run in zip(epochs.labels, epochs.runs, strict=True):
        rows.append([label, *(number(getattr(run, mark).step) for mark in marks)])
    caption = f"Epochs of {in_words(epochs.token_set)} by rule {epochs.rule}, {name}"
    several = (
        f"The {MEAN_CURVE} is the mean over runs, and may do what no run does."
        if len(epochs.runs) > 1
        else ""
    )
    words = [
        RULES[epochs.rule],
        EPOCHS_ARE if epochs.rule == "A" else "",
        "Numbers are steps; a dash: not reached.",
        several,
    ]
    note = " ".join(filter(None, [*words, *_reasons(epochs, marks)]))
    header = [", ".join(filter(None, (name, THEN.get(mark)))) for mark, name in marks.items()]
    return Table(caption, ["", *header], rows, note)


def _reasons(epochs: GroupEpochs, marks: Mapping[str, str]) -> Iterator[str]:
    """Says why a boundary was not reached in the mean curve, though perhaps in runs."""
    for mark, words in marks.items():
        found = getattr(epochs.mean, mark)
        if found.step is None:
            over, name = epochs.over_runs(mark), words.split(" ", 1)[0]
            runs = f" ({over.num_reached} of {over.num_runs} runs have it)" if over.num_reached else ""
            yield f"Why the {MEAN_CURVE} has no {name}: {found.reason}{runs if over.num_runs > 1 else ''}."


def published_table(group: Group, lines: Sequence[BesidePublished], background: Background) -> Table:
    """Returns upstream's published figures beside those of a group of runs."""
    first = group.runs[0]
    others = other_settings(background.config, background.swept[first.run], first.num_tokens[TOKEN_SET])
    cells, lead, difference = comparison_cells(lines), "", DIFFERENCE
    header: tuple[str, ...] = HEADER
    if end_of(group) < LAST_STEP:
        lead, difference = _too_short(group), ""
        column = HEADER.index("difference / std")
        header = HEADER[:column] + HEADER[column + 1 :]
        there = [row for row, line in zip(cells, lines, strict=True) if line.ours.mean is not None]
        cells = [row[:column] + row[column + 1 :] for row in there]
    words = [PUBLISHED_ARE, difference, SOURCES]
    words += [f"Not the same as published: {'; '.join(others)}."] if others else []
    caption = f"Dead tokens: published figures beside {group.name}"
    return Table(caption, header, cells, " ".join(filter(None, words)), lead=lead)


def _too_short(group: Group) -> str:
    """Says why a recording that ends before the published ones is not judged by them."""
    return (
        f"This recording has {counted(len(group.runs), 'run')} and ends at step {end_of(group)}; "
        f"published are ten that end at step {LAST_STEP:,}. What it has is listed, to look at: no "
        "difference is judged, since a learning rate that falls over fewer steps moves the tokens otherwise."
    )
