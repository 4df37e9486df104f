"""`trainer.max_epochs` alone: how many steps that is, the data tell, before anything is trained."""

import json
from pathlib import Path

import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.recording.checking.verify import verify
from tests.conftest import SmallData

EPOCHS = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
FEW = "--trainer.limit_train_batches=3"


def command(verb: str, data: SmallData, folder: Path, *more: str) -> list[str]:
    words = [verb, *data.arguments, "--experiment.output_dir", str(folder), "--experiment.name", "x"]
    return [*words, "--trainer.enable_progress_bar", "false", *more]


def test_epochs_are_steps_and_the_same_command_goes_on(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("fit", small_data, tmp_path / "epochs", *EPOCHS, FEW)) == 0
    assert main(command("fit", small_data, tmp_path / "epochs", *EPOCHS, FEW)) == 0
    assert "finished already" in capsys.readouterr().out
    steps = ["--trainer.max_steps=6", *EPOCHS[1:], FEW]
    assert main(command("fit", small_data, tmp_path / "steps", *steps)) == 0
    assert verify(tmp_path / "epochs" / "x").ok
    record = json.loads((tmp_path / "epochs" / "x" / "experiment.json").read_text())
    assert record["config"]["trainer"]["max_steps"] == 6
    with (
        flannel_pl.open_recording(tmp_path / "epochs" / "x") as found,
        flannel_pl.open_recording(tmp_path / "steps" / "x") as expected,
    ):
        assert "ended" not in found.run(0).metadata
        for name in expected.run(0).names:
            assert found.run(0).tensor(name)[:].tobytes() == expected.run(0).tensor(name)[:].tobytes(), name


def test_a_model_and_data_of_ones_own(tmp_path: Path) -> None:
    words = ["--data", "tests.training.lab.Data", "--model", "tests.training.lab.Net", *EPOCHS]
    words += [
        "--experiment.output_dir",
        str(tmp_path),
        "--experiment.name",
        "x",
        "--recorder.parameters",
        "all",
    ]
    assert main(["fit", *words, "--trainer.accumulate_grad_batches=4"]) == 0
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        assert recording.run(0).num_rows == 1 + 2 * 2  # of six batches an epoch, four and two
        assert "ended" not in recording.run(0).metadata


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--experiment.sweep", "{data.batch_size: [3, 4]}"],
            "is not the same number of steps in all runs ({",
        ),
        (["--trainer.max_epochs=-1"], "trainer.max_steps is -1, expected at least 1; give the steps"),
        (
            ["--data", "tests.training.lab.Endless", "--model", "tests.training.lab.Net"],
            "and the data do not say how long one is; give the most steps there may be, e.g. --trainer.max",
        ),
    ],
)
def test_what_has_no_length_is_refused_before_there_is_a_folder(
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    own = ["fit", "--experiment.output_dir", str(tmp_path), "--recorder.parameters", "all"]
    given = own if "--data" in words else command("fit", small_data, tmp_path)
    assert main([*given, *EPOCHS, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
