"""Configs by file and by name, copies of those that come with the package, and the files that they name."""

import shutil
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.cli.configs import with_config
from flannel_pl.errors import UserError
from flannel_pl.shipped import shipped_configs
from flannel_pl.training.cli import resolve
from tests.conftest import SmallData


def test_a_first_word_is_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = str(shipped_configs()["flannel3"])
    assert with_config(["flannel3", "--trainer.max_steps", "3"]) == [
        "--config",
        shipped,
        "--trainer.max_steps",
        "3",
    ]
    assert with_config(["--config", "x"]) == ["--config", "x"]
    assert with_config([]) == []
    Path("mine.yaml").touch()
    Path("flannel3.yaml").touch()
    assert with_config(["flannel3"]) == ["--config", "flannel3.yaml"], "as init has copied it"
    Path("flannel3").touch()
    assert with_config(["mine.yaml"]) == ["--config", "mine.yaml"]
    assert with_config(["flannel3"]) == ["--config", "flannel3"], "a file goes before a name"
    with pytest.raises(
        UserError, match=r"there is no config flannel4; give a file, or one that comes with .*: flan"
    ):
        with_config(["flannel4"])
    for name in ("mine.yaml", "flannel3", "flannel3.yaml"):
        Path(name).unlink()


def test_a_copy_is_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "quickstart"]) == 0
    assert capsys.readouterr().out == (
        "quickstart.yaml: change what you like, then: flannel-pl fit quickstart.yaml\n"
    )
    copy = Path("quickstart.yaml")
    assert copy.read_bytes() == shipped_configs()["quickstart"].read_bytes()
    assert resolve(["--config", "quickstart.yaml"]) == resolve(with_config(["quickstart"]))
    copy.write_text("mine")
    assert main(["init", "quickstart"]) == 2
    assert "quickstart.yaml is there already; choose another name with --out" in capsys.readouterr().err
    assert copy.read_text() == "mine"
    assert main(["init", "flannel2"]) == 2
    assert "'flannel2' is no config of flannel-pl; there are flannel1, flannel3, q" in capsys.readouterr().err
    assert main(["init", "flannel1", "--out", "no/such/folder.yaml"]) == 1
    copy.unlink()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_files_that_a_config_names_lie_beside_it(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    for name in ("corpus", "tokenizer", "masks"):
        shutil.copy(getattr(small_data, name), home / "data" / name)
    (home / "ids.txt").write_text("1\n2\n")
    (home / "it.yaml").write_text(
        "data: {corpus_path: data/corpus, tokenizer_path: data/tokenizer, mask_path: data/none}\n"
        "recorder: {tokens: ids.txt}\nexperiment: {output_dir: runs}\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here if elsewhere else home)
    config = resolve(["--config", str(home / "it.yaml")])
    assert config["data"]["corpus_path"] == str(home / "data" / "corpus")
    assert config["data"]["tokenizer_path"] == str(home / "data" / "tokenizer")
    assert config["data"]["mask_path"] == str((here if elsewhere else home) / "data" / "none")
    assert config["recorder"]["tokens"] == str(home / "ids.txt")
    assert config["experiment"]["output_dir"] == "runs", "what is made is made where one calls from"
    given = resolve(["--config", str(home / "it.yaml"), "--data.corpus_path", "mine"])
    assert given["data"]["corpus_path"] == str(Path.cwd() / "mine")


def test_a_word_for_tokens_is_no_file(tmp_path: Path) -> None:
    for word in ("all", "dead", "live"):
        (tmp_path / word).write_text("5\n")
        (tmp_path / "it.yaml").write_text(f"recorder: {{tokens: {word}}}\n")
        assert resolve(["--config", str(tmp_path / "it.yaml")])["recorder"]["tokens"] == word


def test_a_group_of_which_all_is_commented_out_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(
        "data:\nmodel:\nexperiment:\nlaunch:\nrecorder:\ntrainer: {max_steps: 3}\n"
    )
    assert resolve(["--config", str(tmp_path / "it.yaml")]) == resolve(["--trainer.max_steps", "3"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", ""], "--config names no file"),
        (["--config={model}"], "has no keys, expected e.g. {model: {n_layer: 2}}"),
        (
            ["--recorder.tensors", "--trainer.max_steps=3"],
            ": expected one argument",
        ),
        (
            ["--config={model: {hiden_dim: 3}}"],
            "error: Group 'model' does not accept option 'hiden_dim'",
        ),
        (["Flannel3"], "did you mean flannel3?"),
    ],
)
def test_what_is_said_of_a_slip(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err
