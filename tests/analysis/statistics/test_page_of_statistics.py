"""The example of docs/statistics.md prints what the page says, and its table of p values is right."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from flannel_pl.analysis.statistics.permutations import smallest_paired_p, smallest_two_sample_p

PAGE = (Path(__file__).parents[3] / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    found = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found[1], {})
    assert printed.getvalue() == found[2]


def test_the_least_p_values_are_those_of_the_page() -> None:
    for name, least in (
        ("least p of so many pairs", smallest_paired_p),
        ("least p of so many runs in each of two arms", lambda num: smallest_two_sample_p(num, num)),
    ):
        (cells,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE, re.MULTILINE)
        for num, cell in zip((3, 4, 5, 6, 7, 8, 10), cells.split(" | "), strict=True):
            assert float(cell) == pytest.approx(least(num), rel=0.3, abs=5e-5 if num > 6 else 1e-3)
