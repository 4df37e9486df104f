"""docs/epochs.md says what the committed tables say, and its arithmetic is right."""

import csv
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.arrays import Array

DOCS = Path(__file__).parents[2] / "docs"
TABLES = DOCS / "results" / "flannel3"
PAGE = (DOCS / "epochs.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())


@pytest.fixture(scope="module")
def made() -> Any:
    spec = importlib.util.spec_from_file_location("epochs_of_docs", DOCS / "generate" / "epochs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps(made: Any) -> dict[str, Array]:
    columns: dict[str, Array] = made.columns("steps_dead.csv")
    return {name.removesuffix("_mean"): column for name, column in columns.items()}


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((TABLES / name).read_text("utf-8").splitlines()))


def figures(name: str) -> dict[str, dict[str, str]]:
    return {row["figure"]: row for row in table(name)}


def of_runs(rule: str, boundary: str) -> list[int]:
    return [
        int(row["step"])
        for row in table("epochs.csv")
        if (row["set"], row["rule"], row["boundary"]) == ("dead", rule, boundary)
        and row["run"] != "mean over runs"
        and row["step"]
    ]


def test_the_table_is_that_of_the_tables(made: Any) -> None:
    assert made.put_into(PAGE) == PAGE
    assert PAGE.count("\n| 366 | 0.5121 |") == 1


def test_the_picture_can_be_made_again(made: Any) -> None:
    axes = made.figure().axes
    (growth, rate) = axes[0].lines[:2]
    assert float(np.nanmax(growth.get_ydata())) == 1
    assert rate.get_ydata()[list(rate.get_xdata()).index(366)] == pytest.approx(0.635)
    assert made.PICTURE.exists()


def test_the_epochs_are_those_of_the_tables(made: Any) -> None:
    inhale, sneeze, freeze = (made.boundary(name) for name in ("inhale", "sneeze", "freeze"))
    own = {name: of_runs("A", name) for name in ("inhale", "sneeze", "freeze")}
    low, high = (
        {key: min(found) for key, found in own.items()},
        {key: max(found) for key, found in own.items()},
    )
    rule_b = of_runs("B", "freeze")
    for line in (
        f"| inhale | 0 to 6 | until {inhale} | until {low['inhale']} or {high['inhale']} |",
        f"| sneeze | 6 to 100 | fastest at {sneeze} | at {low['sneeze']} to {high['sneeze']} |",
        f"| deceleration | 100 to 300 | until {freeze} | until {low['freeze']} to {high['freeze']} |",
        f"| Fimbulwinter | from 400 | from {freeze} | from {low['freeze']} to {high['freeze']}; "
        f"by rule B from {min(rule_b)} to {max(rule_b)} |",
    ):
        assert line in PAGE
    assert of_runs("B", "re_expansion") == []


def of(part: float, digits: int = 0) -> str:
    return f"{part:.{digits}%}".replace("%", " %")


def test_the_words_about_motion_have_the_numbers_of_the_tables(steps: dict[str, Array]) -> None:
    speed, own, out = steps["token_speed"], steps["thermal_speed"], steps["radial_fraction"]
    radius, cloud = steps["origin_radius"], steps["centroid_radius"]
    growth = np.convolve(np.diff(radius), np.ones(5) / 5, "same")
    part = growth / growth.max()
    (lift_off,) = (row for row in table("key_figures_dead.csv") if row["figure"] == "lift-off step")
    for told in (
        f"is {speed[10]:.4f} long, and what is left of it without the common motion is "
        f"{of(own[10] / speed[10])} of that",
        f"shrinks by {of(1 - radius.min() / radius[0], 2)} until step {radius.argmin()}, then grows",
        f"in step 1, {of(steps['inward_fraction'][1])} of the dead",
        f"the centroid moves by {steps['centroid_speed'][1]:.4f}, each token without it by {own[1]:.4f}",
        f"at step {growth.argmax()}, by {growth.max():.4f} per step",
        f"longest at the very first, {speed[1]:.4f}, and {speed[24]:.4f} long at 24",
        f"has {of(out[10])} of its length outward, in step 24 {of(out[24])}, in step 50 {of(out[50])}",
        f"at step {lift_off['least']} to {lift_off['most']}",
        f"{of(steps['path_efficiency'][24])} of the way it has gone by step 24",
        f"from {cloud[24]:.3f} to {cloud[366]:.3f}",
        f"{100 * part[250:296].min():.1f} to {of(part[250:296].max(), 1)} of the peak per step",
        f"from {steps['origin_radius_std'][250]:.4f} to {steps['origin_radius_std'][400]:.4f}",
    ):
        assert told in WORDS, told
    assert part[366] < 0.01 <= part[360]  # a hundredth
    assert speed[1] == np.nanmax(speed)


def test_the_words_about_rest_have_the_numbers_of_the_tables(steps: dict[str, Array]) -> None:
    dead, live = figures("key_figures_dead.csv"), figures("key_figures_live.csv")
    frozen, still = steps["frozen_fraction"], steps["zero_component_fraction"]
    last = dead["freeze step, max"]
    least, most = int(last["least"]), int(last["most"])
    for told in (
        f"end at an origin radius of {float(live['origin_radius, end']['mean']):.3f}, "
        f"dead ones at {float(dead['origin_radius, end']['mean']):.3f}",
        f"{of(still[100])} in step 100, {of(still[200])} in step 200",
        f"all tokens but {of(frozen[200], 2)} still move",
        f"at step {np.argmax(frozen > 0.9)} in the mean",
        f"by step {float(dead['freeze step, median']['mean']):.0f} (mean over the runs)",
        f"and the last one at {least} to {most}",
        f"at {100 - (least - 1) / 10:.0f} to {of(1 - (most - 1) / 1000)} of its start",
        f"no sooner than step {live['freeze step, median']['mean']}",
        f"and {of(float(live['fraction of tokens still moving']['mean']))} never do",
    ):
        assert told in WORDS, told


def test_the_arithmetic_of_the_page_is_that_of_torch() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["torch"].tensor(1e-9).item() * 0.999**500 == pytest.approx(0.61e-9, rel=0.01)
