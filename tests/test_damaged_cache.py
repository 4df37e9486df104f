"""Damage in the cache between one look and the next: named, mended, and no bit of a recording differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import flannel_pl.cli.fit
from flannel_pl.__main__ import main
from flannel_pl.corpus.store import load_corpus
from flannel_pl.training.fit import train_held
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.faulty_disk import tensors_of


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokens(small_data: SmallData, own_cache: None) -> Path:
    return load_corpus(
        vocab_size=SMALL_VOCAB_SIZE, corpus_path=small_data.corpus, tokenizer_path=small_data.tokenizer
    ).tokens_path


def damage(tokens: Path) -> None:
    with tokens.open("r+b") as file:
        file.seek(128)
        begin = file.read(4000)
        file.seek(128)
        file.write(begin[2000:] + begin[:2000])  # every token as often as before


def words(data: SmallData, output_dir: Path) -> list[str]:
    steps = ["--trainer.max_steps", "3", "--launch.threads_per_run", "1"]
    return ["fit", *data.arguments, *steps, "--experiment.output_dir", str(output_dir)]


def test_tokens_damaged_before_the_check_and_before_the_training(
    small_data: SmallData,
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(small_data, tmp_path / "calm")) == 0

    def damaged_in_between(*arguments: Any, **settings: Any) -> None:
        damage(tokens)
        train_held(*arguments, **settings)

    monkeypatch.setattr(flannel_pl.cli.fit, "train_held", damaged_in_between)
    capsys.readouterr()
    damage(tokens)
    assert main(words(small_data, tmp_path / "struck")) == 0
    assert capsys.readouterr().err.count(f"flannel-pl: {tokens} is damaged; it is made anew\n") == 2
    assert tensors_of(tmp_path / "struck" / "flannel") == tensors_of(tmp_path / "calm" / "flannel")


def test_an_older_record_knows_no_hash_of_the_tokens(
    small_data: SmallData, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(small_data, tmp_path)
    assert main(command) == 0
    path = tmp_path / "flannel" / "experiment.json"
    record = json.loads(path.read_text())
    digest = record["provenance"]["data"].pop("tokens")
    path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "flannel" / "run_0")
    (tmp_path / "flannel" / "flannel.safetensors").unlink()
    assert main(command) == 0  # goes on with the older folder
    record["provenance"]["data"]["tokens"] = "f" * 64
    path.write_text(json.dumps(record))
    assert main(command) == 2
    assert f"content of the tokens: {'f' * 64} there, {digest} now" in capsys.readouterr().err
