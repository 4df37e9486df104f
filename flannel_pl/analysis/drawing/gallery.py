"""The report's figures in their order, with the words below each: how to read it, and its formula."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from flannel_pl.analysis.drawing import cloud, figures, interactive, maps, own, radii
from flannel_pl.analysis.drawing.charts import Chart
from flannel_pl.analysis.measuring.results import LIVES
from flannel_pl.metrics.row_metrics import RowMetric


@dataclass(frozen=True)
class Kind:
    """A figure of the report."""

    name: str
    """Of its files, and of its function."""

    heading: str
    draw: Callable[..., Figure | None]
    """Called with experiments, `token_set` and `bands`."""

    chart: Callable[..., Chart | None]
    """The same for a browser; called with experiments and `token_set`."""

    caption: str
    """How to read it: true of the chart and of the figure, whatever the recording is."""

    alone: str
    """What else is seen if there is one group of runs; of several, only the means over runs are drawn."""

    of_runs: str
    """What else is seen if that group, or one of several, has more than one run."""

    formula: str
    needs: str
    """What is missing when there is no such figure."""

    shows: str
    """The metric without which there is none, or the like, as it is called where it is left out."""

    has_epochs: bool = True
    """Whether epochs are shaded and named."""

    def words(self, *, alone: bool, several_runs: bool, shaded: bool) -> str:
        """Returns what stands below it.

        Args:
            alone: Whether there is one group of runs.
            several_runs: Whether a group has more than one run.
            shaded: Whether any epoch is known.
        """
        parts = [self.caption]
        parts += [self.alone] if alone else []
        parts += [self.of_runs] if several_runs else []
        parts += [SHADED] if alone and shaded and self.has_epochs else []
        return " ".join(filter(None, parts))


SHADED = (
    "Named at the top, every second one shaded: the epochs that rule A finds in the mean curve; what "
    "each is, the tables of epochs say."
)

THIN = "Thin lines are runs."


GALLERY = (
    Kind(
        "radius",
        "Radius over time",
        radii.radius,
        interactive.radius_chart,
        "Two radii of the same tokens: the origin radius says how far they are from zero, the centroid "
        "radius how far they are from their own centre. A cloud that drifts away as a whole grows in the "
        "first and not in the second.",
        "",
        "Thin lines are runs, thick ones their means, the coloured area is one standard deviation to "
        "either side.",
        "origin radius = mean_i |w_i|, centroid radius = mean_i |w_i - c|, c = mean_i w_i",
        "the embeddings",
        "origin_radius",
    ),
    Kind(
        "cloud",
        "The cloud",
        cloud.cloud_frames,
        cloud.cloud_chart,
        "Up to 200 dead and 200 live tokens, evenly spread over the vocabulary, of the first run of each "
        "group of runs. The axes are the directions in which these tokens extend most at the step that is "
        "named, and stay the same at all steps, with one scale for all; in brackets, how much of the "
        "variance there is along each. Zero is the zero from which the origin radius is taken.",
        *("", ""),
        "w_i . a_k, a_k the first principal directions of w_i - c at the named step",
        "two recorded rows of embeddings, finite ones among them",
        "origin_radius",
        has_epochs=False,
    ),
    Kind(
        "inhale",
        "The inhale",
        radii.inhale,
        interactive.inhale_chart,
        "The first steps, ten at most, enlarged: does the cloud shrink before it flies outward? "
        "Every row is a point. A line that leaves the figure at the top goes on in the next one.",
        "",
        THIN,
        "100 * (mean_i |w_i(t)| / mean_i |w_i(0)| - 1)",
        "three recorded rows in the first 10 steps",
        "origin_radius",
        has_epochs=False,
    ),
    Kind(
        "sneeze",
        "The sneeze",
        radii.sneeze,
        interactive.sneeze_chart,
        "Above, the origin radius until step 120 or the end of the recording; below, how much it "
        "grows from a step to the next: thick, smoothed over 5 steps; thin, not smoothed.",
        "",
        "Thick lines are means over runs, thin lines runs, the areas one standard deviation to "
        "either side of the mean; that below is not smoothed.",
        "v(t) = (mean_i |w_i(t+1)| - mean_i |w_i(t)|) per step",
        "three recorded rows in the first 120 steps",
        "origin_radius",
    ),
    Kind(
        "speed",
        "Speed",
        figures.speed,
        interactive.speed_chart,
        "How far a token goes in one step, and how far the centre of them all goes. Where these two lie on "
        "one another, tokens move as one body. The axis is logarithmic: a line that falls out of the "
        "figure is a standstill.",
        "Dotted: what is left of a token's step without the centre's.",
        "Means over runs.",
        "token speed = mean_i |dw_i|, centroid speed = |dc|, thermal speed = mean_i |dw_i - dc|",
        "two recorded rows, and some motion",
        "token_speed",
    ),
    Kind(
        "frozen",
        "Frozen tokens",
        figures.frozen,
        interactive.frozen_chart,
        "The part of the tokens of which not one bit changed since the row before. A frozen token may thaw "
        "again. Dashed: 90 %, above which rule B finds Fimbulwinter. If there is a dotted line, it is the "
        "learning rate, which all runs share, in percent of its highest: a freeze while it goes to zero says "
        "little about the model.",
        "",
        THIN,
        "frozen fraction = |{i : bits of w_i(t) = bits of w_i(t-1)}| / number of tokens",
        "two recorded rows",
        "frozen_fraction",
    ),
    Kind(
        "lifecycle",
        "Phases of life",
        maps.lifecycle,
        interactive.lifecycle_chart,
        "At each step, which part of the tokens is in which phase. A phase ends with the last time that a "
        "token does something, so that nobody goes back: early until its last step longer than the square "
        "root of D, midlife until the last that moves a component by more than one ULP, late until the last"
        " that moves it at all, then, to the end of the recording, Fimbulwinter.",
        "",
        "Mean over runs.",
        "last t with |dW'|_2 > sqrt(D); with |dW'|_inf > 1; with |dW'|_1 > 0, where dW' = dW / ULP(W)",
        "two recorded rows, in the format that the weights have (bfloat16 or float32)",
        LIVES,
        has_epochs=False,
    ),
    Kind(
        "displacement",
        "Jumps on the lattice",
        maps.displacement_map,
        interactive.displacement_chart,
        "Weights live on a lattice, whose spacing is the unit in the last place (ULP) of their number "
        "format. Each column shows how far tokens jump at that step, measured in lattice points; brighter "
        "is more tokens, on a logarithmic scale. Bottom row: tokens that do not move. Dashed: the square "
        "root of D, one lattice point in every dimension. Jumps over millions of points are of "
        "components near zero, where the lattice is so fine that an ordinary step crosses that many.",
        *("", ""),
        "|dW'|_2, dW' = (W(t) - W(t-1)) / ULP(W(t-1)); in bfloat16 ULP = 2^(E - 134), E the exponent's bits",
        "two recorded rows, in the format that the weights have (bfloat16 or float32)",
        "lattice_l2",
        has_epochs=False,
    ),
    Kind(
        "divergence",
        "Distance between runs",
        figures.divergence,
        interactive.divergence_chart,
        "How far apart runs are that differ in their seed only, beside how far each has come from its own "
        "start. If steps have nothing to do with each other or with the starts, runs end up at least the "
        "square root of 2 times as far from each other as from their starts. Dashed: from their starts.",
        "Thin lines, if there are several pairs of runs: each pair.",
        "",
        "|| W_a(t) - W_b(t) ||_F for runs a and b; dashed || W_a(t) - W_a(0) ||_F",
        "two runs or more that differ in nothing but their seed, of the same tokens",
        "origin_radius",
    ),
    Kind(
        "loss",
        "Loss",
        figures.loss,
        interactive.loss_chart,
        "Coloured: running means over some rows. The loss in row t is that of the weights before step t.",
        "Grey: the loss of each batch, all runs.",
        "Thin and coloured, each run's; thick, the mean of these, with an area of one standard deviation to "
        "either side.",
        "mean cross-entropy over the predicted tokens of a batch, in nats",
        "the loss of a step",
        "",
    ),
)


def own_figures(metrics: Mapping[str, RowMetric]) -> list[Kind]:
    """Returns the figures of somebody's own metrics, as far as they say how they are drawn."""
    return [
        Kind(
            name,
            metric.drawn.heading,
            partial(own.own_metric, name=name, label=metric.drawn.label),
            partial(interactive.own_chart, name=name, label=metric.drawn.label),
            metric.drawn.caption,
            *("", ""),
            metric.drawn.formula,
            "two recorded rows" if metric.of_motion else "the embeddings",
            name,
        )
        for name, metric in metrics.items()
        if metric.drawn is not None
    ]
