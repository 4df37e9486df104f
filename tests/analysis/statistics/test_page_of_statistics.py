"""The example of docs/statistics.md prints what the page says, and its table of p values is right."""

import contextlib
import io
import math
import re
import shutil
from pathlib import Path

import pytest

from flannel_pl import open_recording
from flannel_pl.analysis.measuring.all_runs import measure_experiment
from flannel_pl.analysis.statistics.permutations import smallest_paired_p, smallest_two_sample_p
from flannel_pl.metrics.grid import frozen_on_grid

PAGE = (Path(__file__).parents[3] / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    found = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found[1], {})
    assert printed.getvalue() == found[2]


def test_recordings_are_compared_as_the_page_says(
    example_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two arms are one recording, which the words notice."""
    for name in ("bf16", "mixed"):
        shutil.copytree(example_runs / "runs" / "quickstart", tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(first + second, {})
    lines = printed.getvalue().splitlines()[-2:]
    assert [line.partition(" the same: ")[2] for line in lines] == [
        "equal to the last digit in all 2 pairs"
    ] * 2


def test_a_report_measures_standstill_on_the_grid(example_runs: Path) -> None:
    with open_recording(example_runs / "runs" / "quickstart") as recording:
        measures = measure_experiment(recording, own={"frozen_on_grid": frozen_on_grid})
    for run in measures.runs:
        series = run.series["dead"]
        assert series["frozen_on_grid"][1:] == pytest.approx(series["frozen_fraction"][1:])
        assert math.isnan(series["frozen_on_grid"][0])


def test_the_least_p_values_are_those_of_the_page() -> None:
    for name, least in (
        ("least p of so many pairs", smallest_paired_p),
        ("least p of so many runs in each of two arms", lambda num: smallest_two_sample_p(num, num)),
    ):
        (cells,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE, re.MULTILINE)
        for num, cell in zip((3, 4, 5, 6, 7, 8, 10), cells.split(" | "), strict=True):
            assert float(cell) == pytest.approx(least(num), rel=0.3, abs=5e-5 if num > 6 else 1e-3)
