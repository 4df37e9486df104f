"""What docs/comparison.md says was measured is what is committed, and its tables stay small."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
RESULT = ROOT / "benchmarks" / "results" / "cpu2.json"
ROWS = {
    "flannel-pl, the embedding": "flannel-pl of the embedding",
    "flannel-pl, every parameter": "flannel-pl of every parameter",
    "safetensors file": "safetensors of weights, gradients, moments",
    "`torch.save` checkpoint": "torch.save of model and optimizer",
    "W&B `watch`, every step": "W&B watch, all at every step (wandb 0.31.0)",
    "trainscope": "trainscope (trainscope 1.8.1)",
    "trainscope, all of them": "trainscope, all at every step (trainscope 1.8.1)",
}
"""Row of the first table -> what the benchmark calls it."""


def first_table() -> list[list[str]]:
    between = PAGE.split("<!-- compare: begin -->")[1].split("<!-- compare: end -->")[0].strip()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in between.splitlines()]


def measured() -> dict[str, Any]:
    parts = json.loads(RESULT.read_text(encoding="utf-8"))["parts"]
    return {figure["name"]: figure["median"] for figure in parts["peers"]["figures"]}


def test_the_first_table_fits_into_a_readme() -> None:
    rows = first_table()
    assert len(rows) - 2 <= 8
    assert {len(row) for row in rows} == {6}
    assert [row[0] for row in rows[2:]] == list(ROWS)


@pytest.mark.parametrize("row", first_table()[2:], ids=lambda row: row[0])
def test_a_row_is_what_was_measured(row: list[str]) -> None:
    name, _, given_back, left, time, work = row
    medians = measured()
    tool = ROWS[name]
    assert given_back == (
        f"{medians[f'peers: embedding, gradient, moments read back to the bit, {tool}']:g} of 4"
    )
    assert left == f"{medians[f'peers: bytes of a step, {tool}']:g} MB"
    assert time == f"{medians[f'peers: a step with {tool} / the bare step']:.2f}x"
    assert work == f"{medians[f'peers: the same in processor time, {tool}']:.2f}x"


def test_the_readme_has_the_same_work() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {row[0]: row[-1] for row in first_table()}
    for name, row in {
        "flannel-pl": "flannel-pl, every parameter",
        "trainscope": "trainscope, all of them",
        "W&B `watch`": "W&B `watch`, every step",
        "a checkpoint every step": "`torch.save` checkpoint",
    }.items():
        (line,) = re.findall(rf"^\| {re.escape(name)} \|.*\| (.*) \|$", readme, flags=re.MULTILINE)
        assert line == shown[row], name


def test_every_reference_is_one() -> None:
    defined = set(re.findall(r"^\[([^\]]+)\]: ", PAGE, flags=re.MULTILINE))
    named = set(re.findall(r"\[([A-Z]\d?|trainscope)\](?!\(|:)", PAGE))
    assert named == defined


def test_lines_are_short() -> None:
    long = [line for line in PAGE.splitlines() if len(line) > 120 and not re.match(r"\[\w+\]: ", line)]
    assert long == []
