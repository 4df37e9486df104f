"""The benchmark of peers says what is not there, and measures the rest."""

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peer_tools, peers
from benchmarks.figures import Figure, table
from benchmarks.peer_tools import TOOLS, Trainscope, Wandb

ROOT = Path(__file__).parents[1]
PACKAGES = {"trainscope", "wandb"}
SAID = "not measured: {} is not installed: pip install flannel-pl[peers]"


def said(processes: dict[str, str], options: argparse.Namespace) -> dict[str, list[list[float]]]:
    return {one: [[2.0, 4.0, 5.0] if one == peers.BARE else [6.0, 9.0, 20.0]] for one in processes}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What of `PACKAGES` seems to be installed; nothing is started to find out how it fares."""
    names: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    monkeypatch.setattr(peers, "start", lambda loop, options, stack, checkout, *more: loop)
    monkeypatch.setattr(peers, "said_in_turns", said)
    monkeypatch.setattr(peers, "answer", lambda process: [3e6, 4])
    return names


@pytest.mark.parametrize("there", [set(), {"trainscope"}, {"wandb"}, PACKAGES], ids=sorted)
def test_what_is_not_installed_is_said_and_not_measured(
    installed: set[str], there: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed |= there
    figures = peers.measure(argparse.Namespace())
    said = capsys.readouterr().err.splitlines()
    assert said[:-1] == [SAID.format(name) for name in sorted(PACKAGES - there)]
    assert said[-1].startswith("not measured: OLMo-core's callbacks need its own trainer")
    rows = table(as_result(figures))
    for name in PACKAGES:
        assert (f"({name} 9.9)" in rows) == (name in there)
        assert (f"| {SAID.format(name)} | | | |" in rows) == (name not in there)
    assert "| peers: a step with flannel-pl of the embedding / the bare step | 2.5 | once |  |  |" in rows
    assert "| peers: the same in processor time, flannel-pl of the embedding | 4 | once |  |  |" in rows


@pytest.mark.parametrize("tool", [Trainscope, Wandb])
def test_a_package_that_is_there_is_not_missing(tool: type[peer_tools.Tool], installed: set[str]) -> None:
    assert peer_tools.is_missing(tool)
    installed.add(tool.package)
    assert not peer_tools.is_missing(tool)


def test_every_package_is_in_the_extra() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {line.split(">=")[0] for line in project["optional-dependencies"]["peers"]}
    assert {tool.package for tool in TOOLS.values()} - {""} == extra == PACKAGES


@pytest.mark.slow
def test_peers_are_measured_at_a_small_size(tmp_path: Path) -> None:
    sizes = ["--size", "small", "--num_blocks", "1", "--block_steps", "2"]
    command = [sys.executable, "-m", "benchmarks", "--only", "peers", *sizes]
    command += ["--folder", str(tmp_path), "--results", str(tmp_path), "--machine", "small"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    figures: list[dict[str, Any]] = json.loads((tmp_path / "small.json").read_text())["parts"]["peers"][
        "figures"
    ]
    for name in PACKAGES:
        is_said = SAID.format(name) in ended.stderr.splitlines()
        assert is_said == (importlib.util.find_spec(name) is None)
    given_back = {
        figure["name"].split("bit, ")[1]: figure["values"] for figure in figures if "bit, " in figure["name"]
    }
    exact = {name: values[0] for name, values in given_back.items() if values[0]}
    assert exact == {
        "flannel-pl of the embedding": 4,
        "flannel-pl of every parameter": 4,
        "torch.save of model and optimizer": 3,
        "safetensors of weights, gradients, moments": 4,
    }
    sizes_mb = [figure["median"] for figure in figures if figure["unit"] == "MB"]
    assert len(sizes_mb) == len(given_back)
    assert min(sizes_mb) > 0


def as_result(figures: list[Figure]) -> dict[str, Any]:
    parts = {"peers": {"load_average_before": 0.5, "figures": [figure.as_json() for figure in figures]}}
    return {"machine": "cpu2", "device": "A Processor", "accelerator": "cpu", "cores": 2, "parts": parts}
