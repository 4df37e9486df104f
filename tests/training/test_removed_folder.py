"""A folder that is removed while something trains in it: a clear error, and nothing brings it back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flannel_pl.training.fit
from flannel_pl.__main__ import main
from flannel_pl.adapters.lightning.recorder import StepRecorder
from tests.conftest import SmallData


def command(data: SmallData, output_dir: Path, *words: str) -> list[str]:
    steps = [
        "--trainer.max_steps",
        "60",
        "--launch.checkpoint_every",
        "5",
        "--trainer.log_every_n_steps",
        "1",
    ]
    place = ["--experiment.name", "gone", "--experiment.output_dir", str(output_dir)]
    return ["fit", *data.arguments, *steps, "--trainer.enable_progress_bar", "false", *place, *words]


def remove_when(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, folder: Path, *, call: int) -> None:
    """Removes a folder when a function is called for the n-th time."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def function(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            shutil.rmtree(folder)
        return original(*arguments, **settings)

    monkeypatch.setattr(owner, name, function)


WHEN = {
    "it trains": (StepRecorder, "on_before_optimizer_step", 8),
    "it looks for a checkpoint": (flannel_pl.training.fit, "find_resume_point", 1),
    "it has hardly begun": (flannel_pl.training.fit, "keep_memory", 1),
    "it begins to train": (StepRecorder, "setup", 1),
    "its first row is written": (StepRecorder, "on_train_start", 1),
}


@pytest.mark.parametrize("below", ["", "run_0"])
@pytest.mark.parametrize("when", WHEN)
def test_a_run_whose_folder_is_removed_while(
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
    below: str,
) -> None:
    owner, name, call = WHEN[when]
    folder = tmp_path / "gone" / below
    remove_when(monkeypatch, owner, name, folder, call=call)
    assert main(command(small_data, tmp_path)) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1
    assert "was removed or renamed while" in error[0]
    assert not folder.exists()
