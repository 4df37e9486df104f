"""What docs/epochs.md has of the committed tables of docs/results/flannel3: a picture and a table.

    python docs/generate/epochs.py

draws docs/assets/growth.png and puts the table into the page; it needs no recording. Shape suffixes: R rows.
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.panels import SHADE, STYLE, add_bands, add_legend, new_figure, save

DOCS = Path(__file__).parents[1]
TABLES = DOCS / "results" / "flannel3"
PICTURE = DOCS / "assets" / "growth.png"
PAGE = DOCS / "epochs.md"
BEGIN, END = "<!-- steps: begin -->", "<!-- steps: end -->"
SHOWN_STEPS = (0, 1, 2, 10, 24, 50, 100, 200, 300, 366, 470, 600, 900)
BLUE, ORANGE = "#1f7fc4", "#d55e00"

BOX_STEPS = 5
"""Of the running mean, as in rule A."""

TOLD = (300, 400)
"""Steps of the second expansion, as the notebook names them."""

NUM_STEPS = 1000
"""Over which the learning rate falls to zero: step t uses 1 - (t - 1) / 1000 of it."""


def columns(name: str) -> dict[str, Any]:
    """Returns the columns of a table as numbers, NaN where there is none."""
    rows = list(csv.DictReader((TABLES / name).read_text("utf-8").splitlines()))
    return {
        key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0] if key not in ("group",)
    }


def boundary(name: str) -> int:
    """Returns a boundary of the dead tokens' mean curve by rule A."""
    rows = csv.DictReader((TABLES / "epochs.csv").read_text("utf-8").splitlines())
    wanted = ("dead", "A", "mean over runs", name)
    return next(
        int(row["step"]) for row in rows if (row["set"], row["rule"], row["run"], row["boundary"]) == wanted
    )


@matplotlib.rc_context(dict(STYLE))
def figure() -> Figure:
    """Returns the figure: growth beside the learning rate, and the part in which it should rise again."""
    radius_R = columns("steps_dead.csv")["origin_radius_mean"]
    growth_R = np.convolve(np.diff(radius_R), np.ones(BOX_STEPS) / BOX_STEPS, "same")
    steps_R = np.arange(len(growth_R))
    inhale, sneeze, freeze = (boundary(name) for name in ("inhale", "sneeze", "freeze"))
    rate = 1 - (freeze - 1) / NUM_STEPS
    title = f"The growth falls to a hundredth by step {freeze}, the learning rate to {rate:.1%}"
    drawn, (upper, lower) = new_figure(title, 2, height=5.6)
    shown = slice(inhale, 500)
    upper.semilogy(
        steps_R[shown],
        np.where(growth_R > 0, growth_R, np.nan)[shown] / growth_R.max(),
        color=BLUE,
        label="growth of mean$|w_i|$ per step (1 = its peak)",
    )
    upper.semilogy(
        steps_R[shown],
        1 - (steps_R[shown] - 1) / NUM_STEPS,
        color=ORANGE,
        linestyle="--",
        label="learning rate (1 = its start)",
    )
    upper.set_ylim(1e-3, 2)
    upper.set_xlim(0, 500)
    upper.set_ylabel("part of the largest")
    bands = [("inhale", 0, inhale), ("sneeze", inhale, sneeze), ("deceleration", sneeze, freeze)]
    add_bands([upper], [*bands, ("Fimbulwinter", freeze, NUM_STEPS)])
    lower.plot(steps_R[200:], growth_R[200:], color=BLUE)
    lower.axvspan(*TOLD, color=SHADE, alpha=0.16, linewidth=0)
    lower.text(
        sum(TOLD) / 2,
        0.95,
        "second expansion,\nas published",
        ha="center",
        va="top",
        fontsize=8.5,
        transform=lower.get_xaxis_transform(),
    )
    lower.set_ylabel("growth per step, from step 200")
    add_legend(upper)
    return drawn


def table() -> str:
    """Returns the page's table: the dead tokens at a few steps, means over the ten runs."""
    steps = columns("steps_dead.csv")
    lines = [
        "| step | origin radius | centroid radius | length of a step | each token's own part | components that stand still | tokens that stand still |",  # noqa: E501
        "|---|---|---|---|---|---|---|",
    ]
    for step in SHOWN_STEPS:
        one = {key: values[step] for key, values in steps.items()}
        speed = one["token_speed_mean"]
        own = one["thermal_speed_mean"] / speed if speed > 0 else np.nan
        cells = [
            f"{step}",
            f"{one['origin_radius_mean']:.4f}",
            f"{one['centroid_radius_mean']:.4f}",
            "" if np.isnan(speed) else f"{speed:#.2g}",
            "" if np.isnan(own) else f"{own:.0%}",
            "" if np.isnan(speed) else f"{one['zero_component_fraction_mean']:.1%}",
            "" if np.isnan(speed) else f"{one['frozen_fraction_mean']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put_into(page: str) -> str:
    """Returns the page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    _, svg = save(figure(), PICTURE.with_suffix(""))
    svg.unlink()
    PAGE.write_text(put_into(PAGE.read_text("utf-8")), encoding="utf-8")
    print(f"{PICTURE}, and the table of {PAGE}")
