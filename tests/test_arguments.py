"""A text in a config stays that text, whatever YAML, fsspec or Python may take it for; in every locale."""

import copy
import json
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.arguments import Text
from flannel_pl.dotted import flatten, set_value
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.training.cli import parse_config, parser_of, resolve, to_yaml
from tests.conftest import SmallData
from tests.test_bad_input import Refuser, refuse

__all__ = ["refuse"]

AWKWARD = [
    *(
        "3e-4",
        "1e5",
        "1_000",
        "yes",
        "Off",
        "null",
        "~",
        "Null",
        "None",
        "true",
        "0x10",
        "010",
        "0b1",
        "1:30",
    ),
    *("1:30:00.5", "2026-01-01", ".inf", "-.5", "1", "1.0", "-", "- a", "-x", "--name", "a: b", "a:", "a #b"),
    *("#b", "[x]", "[1, 2]", "[]", "{x}", "{a: 1}", "{}", "'", '"', "'q'", '"q"', "it's", " lead", "trail "),
    *("a\nb", "\n", "a\tb", "\r", "*x", "&x", "!x", "!!int 3", "%", "%x", "@", "`", "${x}", "$x", "|", "> x"),
    *("? a", "---", "...", "<<", "=", "\\n", "\\", "\x85", "\u2028", "\ufeffx", "\x07", "\u00e9\u0e20"),
    *("\U0001f600", "\udcff", "\ud800", "", "." * 300, "Unable to serialize"),
]

SOME = [
    pytest.param(text, marks=() if number % 4 == 0 else pytest.mark.slow, id=ascii(text))
    for number, text in enumerate(AWKWARD)
]
"""All of them; every fourth in the tests that take seconds."""

UNNAMEABLE = ("\ud800", "." * 300)
"""Texts that no file can be called, see `test_what_is_no_path_is_refused`."""

CLASSES = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": dict.fromkeys(("dirpath", "filename", "monitor"), ""),
}


def takes_text(kind: Any) -> bool:
    return kind in (str, Path) or any(takes_text(one) for one in typing.get_args(kind))


def text_keys() -> list[str]:
    """Every key whose value may be a text, or hold one: found in the parser."""
    kinds = {action.dest: action._typehint for action in parser_of()._actions if hasattr(action, "_typehint")}
    return [key for key, kind in kinds.items() if takes_text(kind) and not key.endswith(".help")]


def is_path(key: str) -> bool:
    is_data = key.startswith("data.") and key.endswith("_path")
    return is_data or key in ("experiment.output_dir", "recorder.tokens")


def with_text(text: str) -> dict[str, Any]:
    """A config with this text wherever a text may be; where it is a path, only if it can be one."""
    path = "x" if text in UNNAMEABLE else text
    config = copy.deepcopy(resolve(["--launch.launcher", "slurm"]))  # the keys of others are left out
    around: dict[str, Any] = {
        "recorder.tensors": [text],
        "recorder.live": [text],
        "launch.slurm.extra": [text, f"{text}2"],
        "recorder.dtypes": {"grads": text, text: "x"},
        "recorder.parameters": {"w": text, text: "x"},
        "experiment.sweep": {"data.corpus_path": [path, f"{path}2"], text: [[text], {text: text}]},
    }
    for key in text_keys():
        set_value(config, key, around.get(key, path if is_path(key) else text))
    config["trainer"]["callbacks"] = [copy.deepcopy(CLASSES)]
    for name in CLASSES["init_args"]:
        set_value(config["trainer"]["callbacks"][0], f"init_args.{name}", text)
    return config


def test_keys_are_found() -> None:
    assert {"experiment.name", "data.mask_path", "launch.slurm.time", "trainer.max_time"} <= set(text_keys())
    assert len(text_keys()) > 20


NUMBERS = {
    **{"1_000": 1000, "0x10": 16, "0b1": 1, "1": 1, "010": 10, "!!int 3": 3},
    **{"-.5": -0.5, "3e-4": 3e-4, "1e5": 1e5, "1.0": 1.0},
}
MEANT_AS_NUMBERS = ("experiment.seeds", "trainer.val_check_interval")
"""Keys of which a text and the number in it are the same."""


@pytest.mark.parametrize("text", SOME)
def test_every_text_of_a_config_is_read_back(tmp_path: Path, text: str) -> None:
    config = with_text(text)
    (tmp_path / "config.yaml").write_bytes(to_yaml(config).encode("ascii"))
    back = dict(flatten(resolve(["--config", str(tmp_path / "config.yaml")])))
    for key, value in flatten(config):
        there = back[key]
        if key == "experiment.output_dir":
            value = str(Path(value))
        elif is_path(key):
            value = str(Path(value).expanduser().absolute())
        if key in MEANT_AS_NUMBERS and text in NUMBERS:
            assert there in (text, NUMBERS[text]), key
        elif key == "trainer.callbacks":
            assert there[0]["init_args"].items() >= value[0]["init_args"].items()
        else:
            assert (there, type(there)) == (value, type(value)), key


NULLS = ("null", "~", "Null")


@pytest.mark.parametrize("text", SOME)
def test_an_argument_is_the_text_that_it_is(text: str) -> None:
    config = resolve([f"--experiment.name={text}", f"--launch.slurm.partition={text}"])
    assert config["experiment"]["name"] == text
    assert config["launch"]["slurm"]["partition"] == (None if text in NULLS else text)


@pytest.mark.parametrize("text", ["a: b", "a #b", "3e-4", "null", "yes", "1:30", "[x]", "\u00e9"])
def test_a_swept_text_stays_that_text(tmp_path: Path, text: str) -> None:
    sweep = f"{{data.corpus_path: {to_json([text, text + '2'])}}}"
    experiment = ResolvedExperiment.from_config(
        resolve(["--experiment.sweep", sweep, "--experiment.seeds", "1..2"])
    )
    for run, expected in zip(experiment.runs, [text, text, text + "2", text + "2"], strict=True):
        config = experiment.run_config(run).content
        assert config["data"]["corpus_path"] == expected
        trained = parse_config(config)["data.corpus_path"]
        assert (trained, type(trained)) == (expected, str)
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        back = resolve(["--config", str(tmp_path / "config.yaml")])
        assert back["data"]["corpus_path"] == str(Path(expected).absolute())
        assert back["experiment"]["sweep"] == {"data.corpus_path": [text, text + "2"]}


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_a_swept_number_in_quotes_is_that_number() -> None:
    config = resolve(["--experiment.sweep", '{"model.learning_rate": ["3e-4"], "model.n_layer": ["1_0"]}'])
    experiment = ResolvedExperiment.from_config(config)
    parsed = parse_config(experiment.run_config(experiment.runs[0]).content)
    assert (parsed["model.learning_rate"], parsed["model.n_layer"]) == (3e-4, 10)


def test_what_is_trained_with_holds_plain_texts_only() -> None:
    """Checkpoints are loaded with weights_only, which knows no class of ours."""
    found = [type(value) for _, value in flatten(parse_config(with_text("x")).as_dict())]
    assert Text not in found
    assert str in found


def test_a_group_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.yaml").write_text("n_layer: 5")
    (tmp_path / "config.yaml").write_text("model: model.yaml\nlaunch: {slurm: {time: 12:00:00}}")
    config = resolve(["--config", str(tmp_path / "config.yaml")])
    assert config["model"]["n_layer"] == 5
    assert config["launch"]["slurm"]["time"] == "12:00:00"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--experiment.seeds", "1:30"], "experiment.seeds is '1:30', expected 42..51, [42, 43] or 7"),
        (["--model.n_layer", "1:30"], "model.n_layer is 1:30, expected a whole number"),
        (["--experiment.name", ".hidden"], "experiment.name is '.hidden', whose files would be hidden"),
        (["--experiment.name", "lock"], "experiment.name is 'lock', expected a plain folder name"),
        (["--experiment.name", "a/b"], "expected a plain folder name"),
        (["--experiment.name", "a\0b"], "experiment.name is 'a\\x00b', expected a plain folder name"),
        (["--experiment.name", ".."], "expected a plain folder name"),
        (["--experiment.name="], "experiment.name is '', expected a plain folder name"),
        (["--experiment.name", "x" * 201], "expected a plain folder name"),
        (["--experiment.name", "\u00e9" * 101], "expected a plain folder name"),
        (["--experiment.name", "\ud800"], "expected a plain folder name"),
    ],
    ids=ascii,
)
def test_what_cannot_work_is_refused(refuse: Refuser, arguments: list[str], expected: str) -> None:
    code, message = refuse(*arguments, verb="plan")
    assert expected in message
    assert code == 2


PATHS = ("experiment.output_dir", "data.corpus_path", "data.mask_path", "recorder.tokens")
NO_PATHS = {
    "a\0b": "is '{}a\\x00b', which no file or folder can be called; give another path",
    "\ud800": "is '{}\\ud800', which no file",
    "x" * 256: "which no file or folder can be called",
    "x/" * 3000: "which no file or folder can be called",
    "~nobody-of-that-name/x": "is '~nobody-of-that-name/x', but there is no such home folder",
}


@pytest.mark.parametrize("path", NO_PATHS, ids=lambda path: ascii(path)[:20])
@pytest.mark.parametrize("key", [*PATHS, "experiment.sweep", "trainer.logger"])
def test_what_is_no_path_is_refused(refuse: Refuser, tmp_path: Path, key: str, path: str) -> None:
    value: Any = {"data.corpus_path": ["x", path]} if key == "experiment.sweep" else path
    if key == "trainer.logger":
        value = {"class_path": "CSVLogger", "init_args": {"save_dir": path}}
    group, name = key.split(".")
    (tmp_path / "config.yaml").write_text(json.dumps({group: {name: value}}))
    command = ["plan", *refuse.data.arguments, "--trainer.max_steps", "3"]
    if f"--{key}" in command:
        place = command.index(f"--{key}")
        del command[place : place + 2]
    assert main([*command, "--config", str(tmp_path / "config.yaml")]) == 2
    message = refuse.capsys.readouterr().err
    assert NO_PATHS[path].format("") in message
    assert len(message) < 300


NAMES = ["run_0", "-x", "trail. ", "con", "a:b", "x" * 200, "experiment", "{x}%s*", "a\nb"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_work(
    small_data: SmallData, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *small_data.arguments, "--trainer.max_steps=2", f"--experiment.output_dir={tmp_path}"]
    words += [f"--experiment.name={name}", "--experiment.keep_shards=false"]
    folder = tmp_path / name
    assert main(words) == 0
    gathered = (folder / f"{name}.safetensors").read_bytes()
    assert not (folder / "run_0" / "recording.safetensors").exists()
    for verb in ("verify", "info", "status", "gather"):
        assert main([verb, str(folder)]) == 0
    assert main(["fit", "--config", str(folder / "run_0" / "config.yaml")]) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*words, "--model.learning_rate=0.5"]) == 2
    assert "holds another experiment" in capsys.readouterr().err
    assert (folder / f"{name}.safetensors").read_bytes() == gathered


BARE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_names_that_are_no_text_in_the_locale(
    small_data: SmallData, tmp_path: Path, locale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--experiment.output_dir", str(tmp_path / "\u00e9\u0e20")]
    words = ["fit", *small_data.arguments, "--trainer.max_steps", "2", *place, "--experiment.name"]
    assert main([*words, "\u00fc here"]) == 0
    (tmp_path / "mine.yaml").write_text(
        f"experiment: {{name: \u00fc there, output_dir: {place[1]}}}", "utf-8"
    )
    mine = [
        "--config",
        str(tmp_path / "mine.yaml"),
        "--experiment.seeds",
        "1..2",
        "--experiment.gather",
        "index",
    ]
    there, here = (tmp_path / "\u00e9\u0e20" / f"\u00fc {where}" for where in ("there", "here"))
    commands = [
        [*words[:-1], *mine],
        ["fit", "--config", str(there / "run_1" / "config.yaml")],
        *(["verify", str(folder)] for folder in (here, there)),
        ["status", str(there)],
        [*words, "\u00fc here"],
    ]
    program = (
        "import json, sys; from flannel_pl.__main__ import main; import os\n"
        "commands = [[os.fsdecode(word.encode()) for word in words] for words in json.loads(sys.argv[1])]\n"
        "if __name__ == '__main__': sys.exit(repr([main(words) for words in commands]))"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {
        **os.environ,
        **BARE,
        "LC_ALL": locale,
        "PYTHONPATH": str(Path(flannel_pl.__file__).parents[1]),
    }
    said = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), json.dumps(commands)],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert said.stderr.decode().splitlines()[-1] == repr([0] * len(commands)), said.stderr.decode()
    capsys.readouterr()
    for folder in (here, there):
        assert main(["verify", str(folder)]) == 0
    assert main(["fit", "--config", str(there / "run_0" / "config.yaml")]) == 0
    assert main([*words[:-1], *mine]) == 0
    assert "finished already" in capsys.readouterr().out


def test_a_refused_text_is_none_of_yaml_s_business() -> None:
    with pytest.raises(UserError, match=r"model.param_dtype is #b, expected bfloat16 or float32"):
        resolve(["--model.param_dtype", "#b"])
