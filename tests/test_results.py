"""What docs/results says is what the committed tables say, and these agree with each other."""

import csv
from pathlib import Path

import numpy as np
import pytest

from flannel_pl.analysis.reporting.published import PUBLISHED

RESULTS = Path(__file__).parents[1] / "docs" / "results"
RUNS = {f"seed {seed}" for seed in range(42, 52)}
README = (RESULTS / "README.md").read_text(encoding="utf-8")


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RESULTS / "flannel3" / name).read_text(encoding="utf-8").splitlines()))


def test_the_page_has_the_reports_table() -> None:
    shown = README.split("<!-- published: begin -->")[1].split("<!-- published: end -->")[0].strip()
    assert (RESULTS / "flannel3" / "published.md").read_text(encoding="utf-8").strip().endswith(shown)


def test_the_table_is_of_todays_published_figures() -> None:
    rows = table("published.csv")
    assert [row["figure"] for row in rows] == [one.name for one in PUBLISHED]
    for row, one in zip(rows, PUBLISHED, strict=True):
        assert float(row["published_mean"]) == one.mean
        assert row["published_std"] == ("" if one.std is None else f"{one.std:.9g}")
        if one.std and row["std"]:
            difference = (float(row["mean"]) - one.mean) / one.std
            assert float(row["difference_in_std"]) == pytest.approx(difference, rel=1e-5)


def test_tables_agree_with_each_other() -> None:
    published = {row["figure"]: row for row in table("published.csv")}
    steps = table("steps_dead.csv")
    assert [int(row["step"]) for row in steps] == list(range(1001))
    figures = {row["figure"]: row for row in table("key_figures_dead.csv")}
    by_run = [row for row in table("key_figures_dead_by_run.csv") if row["figure"] == "origin_radius, end"]
    assert len(by_run) == 10
    radius = np.array([float(row["value"]) for row in by_run])
    for found in (published["origin radius, step 1000"], figures["origin_radius, end"]):
        assert float(found["mean"]) == pytest.approx(radius.mean(), rel=1e-6)
        assert float(found["std"]) == pytest.approx(radius.std(ddof=1), rel=1e-6)
    assert float(steps[1000]["origin_radius_mean"]) == pytest.approx(radius.mean(), rel=1e-6)
    mean_R = np.array([float(row["origin_radius_mean"]) for row in steps])
    assert int(published["sneeze: step of the peak"]["mean"]) == int(
        np.convolve(np.diff(mean_R), np.ones(5) / 5, "same").argmax()
    )
    distances = {row["step"]: row for row in table("distances.csv") if row["set"] == "dead"}
    assert distances["1000"]["distance_mean"] == published["distance between runs, step 1000"]["mean"]


def test_the_words_are_those_of_the_tables() -> None:
    epochs = [row for row in table("epochs.csv") if row["set"] == "dead"]

    def steps(rule: str, boundary: str) -> list[int]:
        return [
            int(row["step"])
            for row in epochs
            if (row["rule"], row["boundary"]) == (rule, boundary)
            and row["run"] != "mean over runs"
            and row["step"]
        ]

    assert sorted(steps("A", "inhale")) == [1] + [2] * 9
    freeze_a, freeze_b = steps("A", "freeze"), steps("B", "freeze")
    assert f"at {min(freeze_a)} to {max(freeze_a)}, {np.mean(freeze_a):.0f} on average" in README
    assert f"it is 470 ({min(freeze_b)} to {max(freeze_b)})" in README
    assert steps("B", "re_expansion") == []
    figures = {row["figure"]: row for row in table("key_figures_dead.csv")}
    last = figures["freeze step, max"]
    assert f"at step {float(last['mean']):.0f} on average ({last['least']} to {last['most']})" in README
    assert float(figures["fraction of tokens still moving"]["most"]) == 0


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.csv")), ids=lambda path: path.name)
def test_a_table_names_no_path(path: Path) -> None:
    assert "/" not in path.read_text(encoding="utf-8")
