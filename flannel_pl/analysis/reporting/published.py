"""Upstream's published figures, and how far a recording is from them.

They are of ten seeds (42 to 51) and the dead tokens of the notebook's own text, trained on Apple's MPS.
Neither is at hand elsewhere: another text is learned otherwise, and another device draws other weights from
the same seed. So what can agree is the mean over seeds and its spread, not a run.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flannel_pl.analysis.reporting.tables import shortest
from flannel_pl.analysis.statistics.group_numbers import (
    NONE,
    Find,
    distance_at,
    distance_ratio_at,
    epoch_of_each,
    epoch_of_mean,
    fastest_parting,
    inhale_depth,
    mean_loss,
    series_at,
)
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import Spread
from flannel_pl.analysis.words import plus_minus, reached
from flannel_pl.dotted import flatten

TOKEN_SET, NUM_TOKENS, LAST_STEP = "dead", 3699, 1000

SETTINGS: Mapping[str, Any] = {
    "trainer.max_steps": LAST_STEP,
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": 1.0,
    "trainer.accumulate_grad_batches": 1,
    "model.vocab_size": 10_000,
    "model.hidden_dim": 64,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.max_seq_len": 128,
    "model.tie_word_embeddings": True,
    "model.param_dtype": "bfloat16",
    "model.init_scale": 0.02,
    "model.init_seed": None,
    "model.learning_rate": 1e-3,
    "model.lr_schedule": "linear",
    "model.weight_decay": 0.0,
    "model.adam_beta1": 0.9,
    "model.adam_beta2": 0.999,
    "model.adam_epsilon": 1e-8,
    "data.batch_size": 32,
    "data.target_offset": 2,
    "data.order_seed": None,
    "recorder.tokens": "all",
    "recorder.every_n_steps": 1,
}
"""Config keys that the published runs had; they are those of configs/flannel3.yaml."""


@dataclass(frozen=True)
class PublishedFigure:
    """One published number, and how to find it in a recording."""

    name: str
    mean: float
    std: float | None
    """Over ten seeds, of the population (numpy's default); None where none was published."""

    source: str
    """Upstream's notebook that prints it."""

    find: Find
    summed: bool = False
    """Whether it is a sum over tokens, and so comes with their number."""


@dataclass(frozen=True)
class BesidePublished:
    """A published number beside that of a recording."""

    published: PublishedFigure
    ours: Spread
    """Without a mean if the recording does not have it, e.g. because it ends before."""

    is_whole: bool = True
    """Whether the recording goes as far as the published ones; one that does not has another schedule."""

    @property
    def difference(self) -> float | None:
        """Ours minus the published mean, in published standard deviations.

        In those of this recording's runs where none was published or it is 0. None if there is neither (a
        figure of the mean curve has no spread, and that of the runs' own figures is none of its), or the
        recording ends before the published ones.
        """
        if not self.is_whole:
            return None
        std = self.published.std or self.ours.std
        return (self.ours.mean - self.published.mean) / std if self.ours.mean is not None and std else None


def compare_with_published(group: Group) -> list[BesidePublished]:
    """Puts a group's figures beside the published ones.

    Args:
        group: Runs that differ in their seed only.

    Returns:
        A line for each of `PUBLISHED`; nothing if the group has no dead tokens.

    Example:
        >>> from flannel_pl.analysis.statistics.groups import groups_of
        >>> from flannel_pl.analysis.measuring.all_runs import measure_experiment
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     (group,) = groups_of(measure_experiment(recording))
        >>> first = compare_with_published(group)[0]
        >>> first.published.name, first.published.mean, first.ours.num_reached
        ('origin radius, step 0', 0.159387, 2)
    """
    if not all(TOKEN_SET in run.series for run in group.runs):
        return []
    other_number = any(run.num_tokens.get(TOKEN_SET, NUM_TOKENS) != NUM_TOKENS for run in group.runs)
    is_whole = end_of(group) >= LAST_STEP
    return [
        BesidePublished(one, NONE if one.summed and other_number else one.find(group), is_whole)
        for one in PUBLISHED
    ]


def end_of(group: Group) -> int:
    """Returns the last step that all runs of a group have."""
    return min(int(run.steps_R[-1]) for run in group.runs)


def other_settings(config: Mapping[str, Any], swept: Mapping[str, Any], num_tokens: int) -> list[str]:
    """Names what else a recording has than the published runs, as sentences without a full stop.

    Args:
        config: Of the experiment, in groups.
        swept: Of the run: key -> value.
        num_tokens: Dead tokens that are recorded.

    Example:
        >>> other_settings({}, {}, 20)
        ['this recording does not say its settings', '20 dead tokens are recorded, published 3,699']
    """
    settings = dict(flatten(dict(config))) | dict(swept)
    unknown = [key for key in SETTINGS if key not in settings]
    if len(unknown) == len(SETTINGS):
        found = ["this recording does not say its settings"]
    else:
        found = [
            f"{key} is {settings[key]}, published {value}"
            for key, value in SETTINGS.items()
            if key not in unknown and settings[key] != value
        ]
        found += [f"this recording does not say {', '.join(unknown)}"] if unknown else []
    if num_tokens != NUM_TOKENS:
        found.append(f"{num_tokens:,} dead tokens are recorded, published {NUM_TOKENS:,}")
    return found


def comparison_cells(lines: Sequence[BesidePublished]) -> list[list[str]]:
    """Returns the table's cells: what, published, this recording, runs, difference in std, source."""
    return [
        [
            line.published.name,
            plus_minus(line.published.mean, line.published.std),
            plus_minus(line.ours.mean, line.ours.std),
            reached(line.ours),
            "-" if line.difference is None else f"{line.difference:+.2f}",
            line.published.source,
        ]
        for line in lines
    ]


HEADER = ("figure", "published", "this recording", "of", "difference / std", "source")


def comparison_markdown(lines: Sequence[BesidePublished]) -> str:
    """Returns the table in Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *comparison_cells(lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def comparison_csv(groups: Iterable[tuple[str, Sequence[BesidePublished]]]) -> str:
    """Returns all lines with all digits.

    Args:
        groups: Name of a group of runs, and its lines.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("group", "figure", "published_mean", "published_std"),
            *("mean", "std", "count", "difference_in_std", "source"),
        ]
    )
    for name, lines in groups:
        for line in lines:
            published, ours = line.published, line.ours
            numbers = (published.mean, published.std, ours.mean, ours.std, ours.num_reached, line.difference)
            cells = ["" if value is None else shortest(value) for value in numbers]
            writer.writerow([name, published.name, *cells, published.source])
    return text.getvalue()


_EACH, _MEAN = partial(epoch_of_each, TOKEN_SET), partial(epoch_of_mean, TOKEN_SET)
_RADIUS, _DISTANCE = partial(series_at, TOKEN_SET), partial(distance_at, TOKEN_SET)
_PARTING, _EVOLUTION = partial(fastest_parting, TOKEN_SET), partial(_DISTANCE, own=True)

PUBLISHED = tuple(
    PublishedFigure(*cells)
    for cells in (
        ("origin radius, step 0", 0.159387, 0.000143, "1.23a", _RADIUS("origin_radius", 0)),
        ("origin radius, step 1000", 0.525185, 0.022288, "1.23a", _RADIUS("origin_radius", 1000)),
        ("centroid radius, step 0", 0.159365, 0.000143, "1.22e", _RADIUS("centroid_radius", 0)),
        ("centroid radius, step 1000", 0.114290, 0.003882, "1.22e", _RADIUS("centroid_radius", 1000)),
        ("inhale: step of its end, each run", 2, 0, "1.23a", _EACH("inhale", "step")),
        ("inhale: depth, each run", 0.000862, 0.000194, "1.23a", inhale_depth(TOKEN_SET)),
        ("inhale: depth of the mean, as a part", 0.00541, None, "1.23a", _MEAN("inhale", "value")),
        ("sneeze: peak speed of the mean", 0.005191, None, "1.23a", _MEAN("sneeze", "value")),
        ("sneeze: step of the peak", 24, None, "1.23a", _MEAN("sneeze", "step")),
        ("freeze: step, rule A on the mean", 393, None, "1.23a", _MEAN("freeze", "step")),
        ("distance between runs, step 0", 13.765362, 0.014810, "1.23d", _DISTANCE(0), True),
        ("distance between runs, step 1000", 45.727581, 3.319516, "1.23d", _DISTANCE(1000), True),
        ("distance from the start, step 1000", 31.457407, 1.360466, "1.23d", _EVOLUTION(1000), True),
        ("ratio of the two, step 1000", 1.4536, None, "1.23d", distance_ratio_at(TOKEN_SET, 1000)),
        ("parting: largest growth per step", 0.454, None, "1.23d", _PARTING("value"), True),
        ("parting: step of that growth", 24, None, "1.23d", _PARTING("step")),
        ("loss, mean of 1000 steps", 7.11286, 0.014648, "train_loss", mean_loss(1000)),
    )
)
"""The notebooks of upstream that print them; the loss is over the ten means that its trainer printed."""
