"""A command whose experiment is finished is answered within a second, and only as long as that is true."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.cli import finished
from flannel_pl.cli.finished import finished_already
from flannel_pl.models.tied_gpt2 import TiedGPT2
from tests.conftest import SmallData


@pytest.fixture
def words(small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command, with a config of its own, that was carried out."""
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "mine.yaml"
    config.write_text("trainer: {max_steps: 2}\nexperiment: {seeds: 3}\n")
    words = ["--config", str(config), *small_data.arguments, "--experiment.output_dir", str(tmp_path)]
    assert main(["fit", *words]) == 0
    return words


def changed(path: Path) -> None:
    """Changes a file and nothing of what `ls` shows: its size and its time stay."""
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[::-1])
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_it_takes_less_than_a_second(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flannel_pl"]
    answer = f"finished already: {tmp_path}/flannel/flannel.safetensors\n"
    seconds = []
    for _ in range(3):
        began_s = time.monotonic()
        done = subprocess.run([*command, "fit", *words], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - began_s)
        assert done.stdout == answer
        assert " torch" not in done.stderr
        assert " lightning" not in done.stderr
    assert min(seconds) < 1
    done = subprocess.run([*command, "plan", *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/flannel is finished; there is nothing to train\n"
    assert " torch" not in done.stderr


def test_another_command_is_read(words: list[str]) -> None:
    assert finished_already(words) is not None
    assert finished_already([*words, "--trainer.max_steps", "3"]) is None


@pytest.mark.parametrize("name", ["mine.yaml", "flannel/experiment.json"])
def test_changed_files_are_read(words: list[str], tmp_path: Path, name: str) -> None:
    changed(tmp_path / name)
    assert finished_already(words) is None


def test_changed_data_is_read(
    words: list[str], small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    shutil.copy(small_data.corpus, corpus)
    mine = [*words, "--data.corpus_path", str(corpus), "--experiment.name", "own"]
    assert main(["fit", *mine]) == 0
    assert finished_already(mine) is not None
    corpus.write_text(corpus.read_text()[:-10])
    assert main(["fit", *mine]) == 2
    assert "wrong counts" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["flannel.safetensors", "experiment.json.partial", "gone"])
def test_what_is_not_there_is_made_again(words: list[str], tmp_path: Path, what: str) -> None:
    folder = tmp_path / "flannel"
    if what == "gone":
        shutil.rmtree(folder)
    elif (folder / what).exists():
        (folder / what).unlink()
    else:
        (folder / what).touch()
    assert finished_already(words) is None
    assert main(["fit", *words]) == 0
    assert finished_already(words) is not None


@pytest.mark.parametrize("mode", ["none", "index"])
def test_other_ways_of_gathering(
    words: list[str], tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [*words, "--experiment.gather", mode, "--experiment.name", mode]
    assert main(["fit", *mine]) == 0
    assert finished_already(mine) is not None
    capsys.readouterr()
    assert main(["fit", *mine]) == 0
    assert capsys.readouterr().out == f"{finished_already(mine)}\n"
    (tmp_path / mode / "run_0" / "recording.safetensors").unlink()
    assert finished_already(mine) is None


def test_runs_by_number_and_classes_are_not_noted(words: list[str], tmp_path: Path) -> None:
    for more in (
        ["--experiment.run", "0", "--experiment.name", "one"],
        ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--experiment.name", "logger"],
    ):
        mine = [*words, *more]
        if "--trainer.logger" in more:
            mine += [f"--trainer.logger.save_dir={tmp_path}/log"]
        assert main(["fit", *mine]) == 0
        assert finished_already(mine) is None


def test_a_damaged_note_costs_time_and_nothing_else(words: list[str], tmp_path: Path) -> None:
    (note,) = (tmp_path / "cache" / "finished").iterdir()
    note.write_text(json.dumps({"folder": 3}))
    assert finished_already(words) is None
    assert main(["fit", *words]) == 0
    assert finished_already(words) is not None


def test_notes_do_not_pile_up(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "MAX_NOTES", 2)
    folder = tmp_path / "cache" / "finished"
    for number in range(4):
        (folder / f"old{number}").touch()
        os.utime(folder / f"old{number}", (number, number))
    mine = [*words, "--experiment.name", "new"]
    assert main(["fit", *mine]) == 0
    assert len(list(folder.iterdir())) == 2
    assert finished_already(words) is not None
    assert finished_already(mine) is not None


def test_a_config_that_is_edited_while_it_trains_means_the_next_time(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.yaml"
    mine = [*words, "--experiment.name", "edited"]
    step = TiedGPT2.training_step

    def edits(self: TiedGPT2, *batch: Any) -> Any:
        config.write_text("trainer: {max_steps: 3}\nexperiment: {seeds: 3}\n")
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(TiedGPT2, "training_step", edits)
        assert main(["fit", *mine]) == 0
    assert finished_already(mine) is None
    assert main(["fit", *mine]) == 2


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_config_names_is_read(words: list[str], tmp_path: Path, inline: bool) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.yaml").write_text("{learning_rate: 1.0e-3, vocab_size: 100, hidden_dim: 16}\n")
    (tmp_path / "sub" / "outer.yaml").write_text("model: model.yaml\n")
    outer = [str(tmp_path / "sub" / "outer.yaml")]
    if inline:
        outer = [f"{{model: {tmp_path}/sub/model.yaml}}"]
    mine = [*words, "--config", *outer, "--experiment.name", "nested"]
    assert main(["fit", *mine]) == 0
    assert finished_already(mine) is not None
    (tmp_path / "sub" / "model.yaml").write_text("{learning_rate: 2.0e-3, vocab_size: 100, hidden_dim: 16}\n")
    assert finished_already(mine) is None
    assert main(["fit", *mine]) == 2
