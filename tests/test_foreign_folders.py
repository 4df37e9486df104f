"""Who looks at somebody else's folder executes nothing of it; and what `plan` imports, `fit` imports too."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flannel_pl
from flannel_pl.__main__ import main
from tests.conftest import SmallData

MODULE = "foreign_callbacks"
HARMLESS = "from lightning.pytorch import Callback\nclass Mine(Callback): pass\n"

TRAPS = (
    *(
        f"{MODULE}.py",
        "sitecustomize.py",
        "usercustomize.py",
        "conftest.py",
        "torch.py",
        "numpy.py",
        "yaml.py",
    ),
    *("safetensors.py", "json.py", "rich.py", "matplotlib.py", "lightning/__init__.py", "evil.pth"),
)
PICKLES = ("checkpoint-2-0123456789abcdef.ckpt", "evil.ckpt", "evil.pkl", "evil.pt", "data.npy")

# What the verb does is told by Python itself: modules, code, pickles and programs, whoever asks for them.
WATCHED = """
import json, os, sys
folder, out, words, seen = sys.argv[1], sys.argv[2], sys.argv[3:], []
starting = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
def watch(event, arguments):
    if event in starting:
        seen.append([event, repr(arguments)[:200]])
    name = str(getattr(arguments[0], "co_filename", "<")) if event == "exec" else "<"
    if event == "open" and str(arguments[0]).endswith((".ckpt", ".pkl", ".pt", ".pth", ".py", ".npy")):
        name = str(arguments[0])
    if name[0] != "<" and os.path.abspath(name).startswith(folder):
        seen.append([event, name])
sys.addaudithook(watch)
from flannel_pl.__main__ import main
code = main(words)
for name, module in list(sys.modules.items()):
    if str(getattr(module, "__file__", "")).startswith(folder):
        seen.append(["module", name])
with open(out, "w") as file:
    json.dump({"code": code, "seen": seen}, file)
"""


class Evil:
    """Makes a file as soon as somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture(scope="module")
def hostile(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished experiments whose config names a class, with traps of every kind in their folders."""
    place = tmp_path_factory.mktemp("hostile")
    modules = tmp_path_factory.mktemp("modules")
    (modules / f"{MODULE}.py").write_text(HARMLESS)
    sys.path.insert(0, str(modules))
    try:
        words = [*small_data.arguments, "--trainer.max_steps=4", f"--experiment.output_dir={place}"]
        words += ["--experiment.seeds=7..8", f"--trainer.callbacks+={MODULE}.Mine"]
        for gather in ("single", "index"):
            assert main(["fit", *words, f"--experiment.gather={gather}", f"--experiment.name={gather}"]) == 0
    finally:
        sys.path.remove(str(modules))
        sys.modules.pop(MODULE, None)
    for folder in (place / "single", place / "index"):
        assert MODULE in (folder / "experiment.json").read_text()
        lay_traps(folder, place / "executed")
    return place


def lay_traps(folder: Path, mark: Path) -> None:
    evil = Evil(mark)
    for where in (folder, folder / "run_0"):
        for trap in TRAPS:
            (where / trap).parent.mkdir(exist_ok=True)
            (where / trap).write_text(f"{'import os; ' * trap.endswith('.pth')}open({str(mark)!r}, 'w')\n")
        for name in PICKLES:
            (where / name).write_bytes(pickle.dumps(evil))
    (folder / "report" / "measured").mkdir(parents=True)
    for name in ("run_0", "run_1", "pairs"):
        np.savez(folder / "report" / "measured" / f"{name}.npz", evil=np.array([evil], dtype=object))


LOOKING = {
    "single": (
        *("status .", "info .", "info run_0/recording.safetensors", "info single.safetensors", "verify ."),
        *("verify run_0", "report .", "compare run_0/recording.safetensors run_1/recording.safetensors"),
        *("gather .", "compare . ../index"),
    ),
    "index": ("info index.safetensors.index.json", "gather . --mode index", "verify .", "report ."),
}


def watched(program: str, folder: Path, *words: str) -> dict[str, Any]:
    """Runs a program, at home in a hostile folder, and returns what was seen of it."""
    here = folder.parent
    (here / "watched.py").write_text(program)
    said = subprocess.run(
        [sys.executable, here / "watched.py", folder, here / "seen.json", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(flannel_pl.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads((here / "seen.json").read_text())
    return {**found, "said": said.stderr}


@pytest.mark.parametrize(("gather", "words"), [(name, words) for name in LOOKING for words in LOOKING[name]])
def test_nothing_of_a_foreign_folder_is_executed(
    hostile: Path, tmp_path: Path, gather: str, words: str
) -> None:
    shutil.copytree(hostile, tmp_path, dirs_exist_ok=True)
    found = watched(WATCHED, tmp_path / gather, *words.split())
    assert found["seen"] == []
    assert found["code"] == words.startswith("compare run"), found["said"]
    assert not (hostile / "executed").exists()


def test_the_watch_sees_what_is_executed(hostile: Path, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    shutil.copytree(hostile, tmp_path, dirs_exist_ok=True)
    program = WATCHED.replace("code = main(words)", "import runpy; code = 0; runpy.run_path('conftest.py')")
    unpickle = "import pickle; pickle.load(open('evil.pkl', 'rb'))\n"
    found = watched(program.replace("with open(out", f"{unpickle}with open(out"), tmp_path / "single")
    assert {"exec", "open", "pickle.find_class"} <= {event for event, _ in found["seen"]}
    assert (hostile / "executed").exists()
    (hostile / "executed").unlink()


@pytest.mark.parametrize("seeds", ["7", "7..8"])
def test_plan_and_fit_import_the_same(
    small_data: SmallData,
    tmp_path: Path,
    seeds: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{MODULE}.py").write_text(HARMLESS)
    monkeypatch.chdir(tmp_path / "here")
    words = [*small_data.arguments, "--trainer.max_steps=2", f"--experiment.output_dir={tmp_path / 'out'}"]
    words += [f"--experiment.seeds={seeds}", f"--trainer.callbacks+={MODULE}.Mine"]
    for verb in ("plan", "fit"):
        assert main([verb, *words]) == 2
        assert f"trainer.callbacks: No module named '{MODULE}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    try:
        for verb in ("plan", "fit"):
            assert main([verb, *words]) == 0, capsys.readouterr().err
        assert Path(sys.modules[MODULE].__file__ or "").parent == tmp_path / "elsewhere"
    finally:
        sys.modules.pop(MODULE, None)
