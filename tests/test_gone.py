"""What goes away while a verb is at work ends it in a line, and nothing makes it anew."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.models.tied_gpt2 import TiedGPT2
from flannel_pl.recording.gathering.gather import gather
from tests.conftest import SmallData
from tests.recording.recording_samples import make_experiment


@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_the_working_folder_is_gone(tmp_path: Path, verb: str) -> None:
    command = 'mkdir gone; cd gone; rmdir "$PWD"; exec "$@"'
    words = [sys.executable, "-P", "-m", "flannel_pl", verb, "quickstart"]
    done = subprocess.run(["sh", "-c", command, "sh", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: the working folder is gone; change to one that is there, e.g. with cd\n"
    )


@pytest.mark.parametrize("what", ["x", "x/run_0"])
@pytest.mark.parametrize("step", [2, 7])
def test_the_folder_is_removed_during_fit(
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    step: int,
) -> None:
    forward = TiedGPT2.training_step

    def remove(self: TiedGPT2, *batch: Any) -> Any:
        if self.trainer.global_step == step:
            while (tmp_path / what).exists():  # the writer may be at work in it
                shutil.rmtree(tmp_path / what, ignore_errors=True)
        return forward(self, *batch)

    monkeypatch.setattr(TiedGPT2, "training_step", remove)
    words = ["--experiment.name", "x", "--experiment.output_dir", str(tmp_path), "--trainer.max_steps", "8"]
    words += ["--launch.checkpoint_every", "3"]
    assert main(["fit", *small_data.arguments, *words]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flannel-pl: error: ")]
    assert len(said) == 1
    assert str(tmp_path / what) in said[0]
    assert not (tmp_path / what).exists()


@pytest.mark.parametrize("verb", ["verify", "gather", "compare"])
def test_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = make_experiment(tmp_path / "x", num_runs=2).folder
    gather(folder)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main([verb, str(folder), *([str(folder)] if verb == "compare" else [])]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "flannel-pl: error: the system allows no more processes or threads; end some, or raise the limit "
        "(ulimit -u)"
    ]
