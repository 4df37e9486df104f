"""What examples/ and pages in docs/ show in Python works as printed (format.md has a test of its own)."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flannel_pl

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(code, id=f"{page.name} {number}")
    for page in (ROOT / "docs" / "compare.md", ROOT / "docs" / "report.md", ROOT / "docs" / "faq.md")
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    )
]


def run(*words: object, folder: Path) -> str:
    return subprocess.check_output([sys.executable, *map(str, words)], cwd=folder, text=True)


def test_world_lines(example_runs: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "world_lines.py"
    printed = run(example, example_runs / "runs" / "quickstart", tmp_path / "lines.png", folder=tmp_path)
    assert printed.startswith("(21, 10, 16)\nthe plane holds ")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    run(example, folder=example_runs)  # without words, on what `make demo` records
    assert (example_runs / "world_lines.png").exists()


@pytest.mark.parametrize(
    ("name", "rows"),
    [("plain_loop", 51), pytest.param("lightning_callback", 51, marks=pytest.mark.slow), ("hf_trainer", 21)],
)
def test_a_recorded_training_of_at_most_forty_lines(name: str, rows: int, tmp_path: Path) -> None:
    example = ROOT / "examples" / f"{name}.py"
    assert len(example.read_text("utf-8").splitlines()) <= 40
    printed = run(example, tmp_path / "mine", folder=tmp_path).splitlines()[-1]
    found = re.search(r"seen tokens moved ([\d.]+), others ([\d.]+)$", printed)
    assert found is not None
    assert float(found[1]) > 0 < float(found[2])
    with flannel_pl.open_recording(tmp_path / "mine") as recording:
        assert recording.run(0).num_rows == rows


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_of_python(code: str, example_runs: Path) -> None:
    run("-c", code, folder=example_runs)


def own_model(folder: Path) -> Any:
    """Returns the module of examples/own_model, from a copy of it."""
    shutil.copytree(ROOT / "examples" / "own_model", folder, ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location("my_lab_here", folder / "my_lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """The class is found in the working folder, by the processes of runs, too; each row is a plain loop's."""
    my_lab = own_model(tmp_path / "lab")
    program = [sys.executable, "-P", "-m", "flannel_pl"]  # -P: as `flannel-pl`, not looking into the folder
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["fit", "--config", "rings.yaml"], ["verify", "runs/rings"]):
        subprocess.run([*program, *words], cwd=tmp_path / "lab", env=environment, check=True)
    seed = 3
    torch.manual_seed(seed)
    module, data = my_lab.RingsModel(), my_lab.RingsData()
    data.setup("fit")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    loader = data.train_dataloader()
    with flannel_pl.open_recording(tmp_path / "lab" / "runs" / "rings") as recording:
        assert recording.seeds == (1, 2, 3, 4)
        run = recording.run(2)
        batches = (batch for _ in range(100) for batch in loader)
        for row, (points_B2, rings_B) in zip(range(1, 101), batches, strict=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module.net(points_B2), rings_B)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert run.losses_f32[row] == loss.item()
            for name, parameter in module.named_parameters():
                grad, now = parameter.grad.numpy(), parameter.detach().numpy()
                assert run.tensor(f"{name}/grads")[row].tobytes() == grad.tobytes(), (row, name)
                assert run.tensor(f"{name}/values")[row].tobytes() == now.tobytes(), (row, name)
            buffer = optimizer.state[module.net[0].weight]["momentum_buffer"]
            kept = run.tensor("net.0.weight/momentum_buffer")[row]
            assert kept.tobytes() == buffer.numpy().tobytes()
