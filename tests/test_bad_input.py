"""Every mistake of a user is one clear message, exit code 2, before any training, and changes no file."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flannel_pl.__main__ import main
from tests.conftest import SmallData
from tests.mounting import read_only


class Refusal(NamedTuple):
    code: int
    message: str


@pytest.fixture
def refuse(small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> "Refuser":
    return Refuser(small_data, tmp_path, capsys)


class Refuser:
    """Runs `fit` with some arguments, on small data, and returns exit code and message."""

    def __init__(self, data: SmallData, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data, self.folder, self.capsys = data, folder, capsys

    def __call__(self, *arguments: str, verb: str = "fit") -> Refusal:
        command = [verb, *self.data.arguments, "--trainer.max_steps", "3"]
        command += ["--experiment.output_dir", str(self.folder / "out"), *arguments]
        self.capsys.readouterr()
        code = main(command)
        captured = self.capsys.readouterr()
        assert not (self.folder / "out").exists(), "a refused experiment left files"
        assert "Traceback" not in captured.err
        message = captured.err.splitlines()[-1]
        assert message.startswith("flannel-pl: error: ")
        return Refusal(code, message)


SETTINGS = [
    (["--trainer.max_steps", "0"], "trainer.max_steps is 0, expected at least 1"),
    (["--trainer.max_steps", "-1"], "trainer.max_steps is -1, expected at least 1"),
    (["--model.max_seq_len", "0"], "model.max_seq_len is 0, expected at least 1"),
    (["--model.max_seq_len", "1"], "model.max_seq_len is 1, expected at least 2"),
    (["--model.n_head", "3"], "model.hidden_dim 16 is not divisible by model.n_head 3"),
    (["--model.n_head", "0"], "model.n_head is 0, expected at least 1"),
    (["--model.learning_rate", "-1"], "model.learning_rate is -1.0, expected 0 or more"),
    (["--model.adam_beta2", "1"], "model.adam_beta2 is 1.0, expected at least 0 and below 1"),
    (["--data.batch_size", "0"], "data.batch_size is 0, expected at least 1"),
    (["--data.batch_size", "1000000"], "data.batch_size is 1000000, but the text has "),
    (["--recorder.every_n_steps", "500"], "recorder.every_n_steps is 500, more than trainer.max_steps "),
    (
        ["--trainer.max_step", "3"],
        "unrecognized arguments: --trainer.max_step 3; did you mean trainer.max_steps?",
    ),
    (["--experiment.na", "x"], "unrecognized arguments: --experiment.na x"),
    (["--experiment.seeds", "[]"], "experiment.seeds is empty; give at least one seed"),
    (["--experiment.seeds", "[42, 43, 42]"], "experiment.seeds repeats [42]"),
    (["--experiment.seeds", "51..42"], "experiment.seeds is '51..42', which counts down; write 42..51"),
    (["--experiment.seeds", "a..b"], "experiment.seeds is 'a..b', expected 42..51, [42, 43] or 7"),
    (["--experiment.seeds", "-3"], "experiment.seeds has [-3], expected numbers from 0"),
    (["--seed_everything", "true"], "seed_everything is true, which draws a seed that nobody could repeat"),
    (["--experiment.name", "a/b"], "experiment.name is 'a/b', expected a plain folder name"),
    (["--experiment.run", "5"], "experiment.run is 5, but the experiment has runs 0 to 0"),
    (["--recorder.tensors", "[]"], "recorder.tensors is empty, expected some of embeddings"),
    (["--recorder.tensors", "[embedings]"], "recorder.tensors has 'embedings'"),
    (["--recorder.tensors", "[embedings]"], "did you mean embeddings?"),
    (["--recorder.every_n_steps", "0"], "recorder.every_n_steps is 0, expected at least 1"),
    (["--recorder.dtypes", "{grads: int3}"], "recorder.dtypes has 'int3' for grads"),
    (["--recorder.tokens", "nowhere.txt"], "nowhere.txt', expected all, live, dead or a text file"),
    (["--experiment.sweep", "{model.init_scal: [1]}"], "did you mean model.init_scale?"),
    (["--experiment.sweep", "{model.init_scale: []}"], "expected a list of values"),
    (["--trainer.accelerator", "tpu"], "trainer.accelerator is tpu, but there is no such device here"),
    (["--trainer.devices", ""], "devices is '', expected auto, a number, or ids such as [0, 2]"),
    (["--recorder.parameter", "foo"], "recorder.parameter is 'foo', expected one with a row for every token"),
    (["--recorder.parameter", "gpt2.transformer.wpe.weight"], "for every token: gpt2.transformer.wte.weight"),
    (["--model.init_scale", ".inf"], "model.init_scale: expected a finite number"),
    (["--trainer.max_epochs", "0"], "trainer.max_epochs is 0, which trains nothing"),
    (["--experiment.seeds", "5000000000..5000000001"], "expected numbers from 0 to 2**32 - 1"),
    (["--experiment.name", "live_dead_tokens"], "expected a plain folder name"),
    (["--launch.checkpoint_every", "0"], "launch.checkpoint_every is 0, expected at least 1"),
    (["--experiment.sweep", "{recorder.every_n_steps: [1]}"], "only keys of model, data and trainer"),
    (["--seeds", "2"], "did you mean experiment.seeds?"),
    (["--trainer.devices", "0"], "devices is 0, expected on the CPU a number of runs side by side"),
    (["--launch.devices", "2", "--trainer.devices", "3"], "they mean the same, so give one of them"),
    (["--launch.runs_per_device", "0"], "launch.runs_per_device is 0, expected at least 1 or auto"),
    (["--launch.threads_per_run", "0"], "launch.threads_per_run is 0, expected at least 1 or auto"),
    (["--trainer.strategy", "ddp"], "every run has one device"),
    (["--trainer.fast_dev_run", "true"], "use --trainer.max_steps 1 for a quick trial"),
    (
        ["--model.hiden_dim", "3"],
        "unrecognized arguments: --model.hiden_dim 3; did you mean model.hidden_dim?",
    ),
    (["--modle.hidden_dim", "3"], "did you mean model.hidden_dim?"),
    (
        ["--model.hidden_dim", "many"],
        "model.hidden_dim is many, expected a whole number",
    ),
    (["--data.max_seq_len", "3"], 'Linked "data.max_seq_len" must be given via "model.max_seq_len"'),
    (["--config", "nowhere.yaml"], "nowhere.yaml'"),
]


@pytest.mark.parametrize(("arguments", "expected"), SETTINGS, ids=[" ".join(case[0]) for case in SETTINGS])
def test_bad_settings(refuse: Refuser, arguments: list[str], expected: str) -> None:
    code, message = refuse(*arguments)
    assert expected in message
    assert code == 2


def test_unknown_key_in_a_config_file(refuse: Refuser, tmp_path: Path) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text("model:\n  hiden_dim: 3\n")
    code, message = refuse("--config", str(config))
    assert "does not accept option 'hiden_dim'; did you mean model.hidden_dim?" in message
    assert code == 2


def test_a_config_file_that_is_no_yaml(refuse: Refuser, tmp_path: Path) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text("model: [")
    code, message = refuse("--config", str(config))
    assert "Problems parsing config" in message
    assert code == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b" \n\t ", "nothing but blanks"),
        (b"abc \xff\xfe def", "UTF-8"),
        (b"abc def", "one window needs model.max_seq_len + 1 = 17"),
    ],
    ids=["missing", "empty", "blank", "not UTF-8", "shorter than a window"],
)
def test_bad_corpus(refuse: Refuser, tmp_path: Path, content: bytes | None, expected: str) -> None:
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    code, message = refuse("--data.corpus_path", str(corpus), "--data.mask_path", "null")
    assert expected.lower() in message.lower()
    assert str(corpus) in message
    assert code == 2


def test_tokenizer_of_another_size(refuse: Refuser) -> None:
    code, message = refuse("--model.vocab_size", "101")
    assert "100" in message
    assert "101" in message
    assert "vocab_size" in message
    assert code == 2


def test_mask_of_another_size(refuse: Refuser, small_data: SmallData, tmp_path: Path) -> None:
    masks = load_file(small_data.masks)
    masks["live_mask"], masks["dead_mask"] = masks["live_mask"][:-1], masks["dead_mask"][:-1]
    save_file(masks, tmp_path / "masks.safetensors")
    code, message = refuse("--data.mask_path", str(tmp_path / "masks.safetensors"))
    assert "99" in message
    assert "100" in message
    assert code == 2


def test_mask_that_disagrees_with_the_corpus(refuse: Refuser, small_data: SmallData, tmp_path: Path) -> None:
    masks = load_file(small_data.masks)
    victim = int(masks["live_indices"][0])
    masks["live_mask"][victim], masks["dead_mask"][victim] = False, True
    masks["live_indices"] = np.flatnonzero(masks["live_mask"])
    masks["dead_indices"] = np.flatnonzero(masks["dead_mask"])
    save_file(masks, tmp_path / "masks.safetensors")
    code, message = refuse("--data.mask_path", str(tmp_path / "masks.safetensors"))
    assert "1 token" in message
    assert str(victim) in message
    assert code == 2


def test_output_folder_that_cannot_be_written(refuse: Refuser, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, message = refuse("--experiment.output_dir", str(tmp_path / "file"))
    assert f"cannot write to {tmp_path / 'file'}" in message
    assert "choose another --experiment.output_dir" in message
    assert code == 2
    assert (tmp_path / "file").read_text() == "in the way"


def test_output_folder_on_a_read_only_disk(refuse: Refuser, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with read_only(tmp_path / "disk"):
        code, message = refuse("--experiment.output_dir", str(tmp_path / "disk" / "new"))
    assert "no permission, or a read-only disk; choose another --experiment.output_dir" in message
    assert code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_output_folder_without_permission(refuse: Refuser, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code, message = refuse("--experiment.output_dir", str(locked))
    assert "no permission" in message
    assert code == 2


@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_not_enough_disk(refuse: Refuser, tmp_path: Path, verb: str) -> None:
    steps = str(2 * shutil.disk_usage(tmp_path).free // (100 * 16 * 2 * 4))
    code, message = refuse("--trainer.max_steps", steps, verb=verb)
    assert "not enough free disk" in message
    assert "to gather them in one file" in message
    assert "have" in message
    assert "--experiment.gather index" in message
    assert "--recorder.tokens dead" in message
    assert code == 2


def test_a_folder_that_is_no_experiment(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "flannel"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    command = [
        "fit",
        *small_data.arguments,
        "--trainer.max_steps",
        "3",
        "--experiment.output_dir",
        str(tmp_path),
    ]
    assert main(command) == 2
    assert "no experiment of ours and nothing is written there" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_all_mistakes_of_the_model_are_named_at_once(refuse: Refuser) -> None:
    _, message = refuse("--model.n_head", "3", "--model.n_layer", "0", "--model.init_scale", "-1")
    assert all(key in message for key in ("model.n_head", "model.n_layer", "model.init_scale"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["fot"], "'fot' is no verb of flannel-pl; did you mean fit?"),
        (["xyzzy"], "the verbs are fit, plan"),
        (["info"], "see flannel-pl info --help"),
        (["info", "nowhere"], "nowhere"),
        (["gather", "nowhere"], "nowhere"),
        (["prepare", "--modeltext", "x"], "see flannel-pl prepare --help"),
    ],
)
def test_bad_verbs(command: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    assert expected in capsys.readouterr().err


def test_a_plan_that_there_is_not_enough_disk_for_is_shown_all_the_same(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *small_data.arguments,
        "--trainer.max_steps",
        str(10**8),
        "--experiment.output_dir",
        str(tmp_path),
    ]
    assert main(["plan", *words]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("experiment  ")
    assert re.search(r"^disk +[\d.]+ GB free$", said.out, re.MULTILINE)
    assert said.err.splitlines()[-1].startswith("flannel-pl: error: not enough free disk")
