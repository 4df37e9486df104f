"""Table and ratios in the pages are the committed measurement, and a result names no one's machine."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import (
    RATIOS,
    TABLE,
    Figure,
    between_marks,
    measured_on_gpus,
    put_into,
    ratios,
    table,
    telling_ratios,
)

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
COMMITTED = ROOT / "benchmarks" / "results" / "cpu2.json"
PARTS = ["steps", "live", "quantities", "experiment", "startup", "disk", "analysis", "peers"]


def result(*figures: Figure) -> dict[str, Any]:
    return {
        "machine": "cpu2",
        "device": "A Processor",
        "accelerator": "cpu",
        "cores": 2,
        "parts": {"steps": {"load_average_before": 0.5, "figures": [figure.as_json() for figure in figures]}},
    }


@pytest.mark.parametrize(
    ("figure", "row"),
    [
        (Figure("a step", "ms", [3.0, 1.0, 2.004]), "| a step | 2 ms | 1 to 3 |  |  |"),
        (
            Figure("a ratio", "", [1.04, 1.05], limit=1.05),
            "| a ratio | 1.04 | 1.04 to 1.05 | <= 1.05 | met |",
        ),
        (Figure("memory", "GB", [2.1], limit=2.0), "| memory | 2.1 GB | once | <= 2 GB | **not met** |"),
        (Figure("speed", "", [3.0], limit=4.0, bound=">="), "| speed | 3 | once | >= 4 | **not met** |"),
        (Figure("disk", "MB/s", [1234.5, 1300.2]), "| disk | 1267 MB/s | 1234 to 1300 |  |  |"),
    ],
)
def test_a_figure_is_a_row_with_its_verdict(figure: Figure, row: str) -> None:
    assert row in table(result(figure)).splitlines()


def test_a_figure_without_values_says_why() -> None:
    row = "| a peer | not measured: it is not there | | | |"
    assert row in table(result(Figure("a peer", "", [], why_not="it is not there"))).splitlines()


def test_a_limit_is_judged_before_rounding() -> None:
    assert Figure("a ratio", "", [1.0501], limit=1.05).as_json()["met"] is False


def test_what_was_not_measured_is_said_to_be_so() -> None:
    assert "| the same on a GPU (`make bench-gpu`) | not measured | | | |" in table(result())


def test_what_was_measured_on_a_gpu_stands_below() -> None:
    gpu = {**result(Figure("a step", "ms", [3.0])), "accelerator": "gpu", "device": "NVIDIA H200"}
    lines = table(result(Figure("a step", "ms", [9.0])), on_gpus=[gpu]).splitlines()
    assert lines[-3:] == [
        "| a step | 9 ms | once |  |  |",
        "| NVIDIA H200: a step | 3 ms | once |  |  |",
        "| the rest on a GPU (`make bench-gpu`) | not measured | | | |",
    ]


def test_ratios_are_those_of_a_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([2.0, 9.0], [1.0])


def test_only_the_text_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    begin, end = "<!-- a: begin -->", "<!-- a: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    put_into(page, "a", "new")
    assert page.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


@pytest.mark.skipif(not COMMITTED.exists(), reason="no result of make bench is committed yet")
def test_pages_hold_what_is_committed() -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    expected = table(committed, on_gpus=measured_on_gpus(COMMITTED.parent))
    shown = between_marks((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), TABLE)
    assert shown == expected, "make bench writes both"
    shown = between_marks((ROOT / "README.md").read_text(encoding="utf-8"), RATIOS)
    assert shown == telling_ratios(committed), "make bench writes both"
    assert list(committed["parts"]) == PARTS


@pytest.mark.parametrize("path", RESULTS, ids=[path.name for path in RESULTS])
def test_a_result_names_no_path_and_no_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'"(?:[A-Za-z]:)?[/~\\]', text), "a path"
    assert not re.search(r'"(host|command|platform|folder|results)"', text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "10"], "--steps is 10, expected more than 10"),
        (["--repeats", "0"], "--repeats is 0, expected at least 1"),
        (["--machine", "a/b"], "--machine is 'a/b', expected a plain name"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    code, _, error = bench(*arguments)
    assert (code, error.splitlines()[-1]) == (2, f"python -m benchmarks: error: {message}")


def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, _, error = bench("--accelerator", "gpu")
    assert code == 2
    assert "torch sees no CUDA device here; nothing was measured" in error


@pytest.mark.slow
def test_everything_is_measured_at_a_small_size(tmp_path: Path) -> None:
    sizes = ["--size", "small", "--num_blocks", "1", "--block_steps", "2", "--repeats", "1"]
    sizes += ["--steps", "400", "--shard_steps", "30", "--startup_runs", "3", "--folder", str(tmp_path)]
    code, output, error = bench(*sizes, "--results", str(tmp_path), "--machine", "small")
    assert code == 0, error
    written = json.loads((tmp_path / "small.json").read_text())
    assert output.strip() == table(written)
    assert list(written["parts"]) == PARTS
    figures = {figure["name"]: figure for part in written["parts"].values() for figure in part["figures"]}
    assert figures["rows lost, 2 runs side by side"]["values"] == [0]
    measured = {name: figure for name, figure in figures.items() if figure["values"]}
    may_be_zero = ("lost", "read back")
    positive = {
        name: figure["least"] > 0
        for name, figure in measured.items()
        if not any(words in name for words in may_be_zero)
    }
    assert all(positive.values()), positive
    assert not list(tmp_path.glob("bench-*")), "what was recorded is deleted"
    test_a_result_names_no_path_and_no_host(tmp_path / "small.json")


def bench(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr
