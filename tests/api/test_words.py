"""A config and keyword arguments become the command line that says the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flannel_pl import FlannelData, TiedGPT2, UserError
from flannel_pl.api.words import command_words
from flannel_pl.cli.configs import with_config
from flannel_pl.training.cli import resolve
from tests.training.lab import Net

FLANNEL3 = Path(__file__).parents[2] / "configs" / "flannel3.yaml"


def config_of(config: Any = None, **changes: Any) -> dict[str, Any]:
    return resolve(with_config(command_words(config, changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": {"max_steps": 7}},
        {"trainer__max_steps": 7},
        {"trainer.max_steps": 7},
        {"trainer": {"max_steps": np.int64(7)}},
        {"trainer__max_steps": torch.tensor(7)},
    ],
)
def test_every_spelling_of_a_key(changes: dict[str, Any]) -> None:
    assert config_of(**changes)["trainer"]["max_steps"] == 7


def test_a_file_and_its_content_are_the_same() -> None:
    content = yaml.safe_load(FLANNEL3.read_text())
    assert config_of(FLANNEL3) == config_of(str(FLANNEL3)) == config_of(content) == config_of("flannel3")
    assert config_of(content, experiment__seeds=[5])["experiment"]["seeds"] == [5]


@pytest.mark.parametrize(
    "name", ["a b", "null", "1e3", "007", "yes", "'x'", '"', "x: y", "[x]", "# x", "naïve", "ก", "-x"]
)
def test_a_text_stays_that_text(name: str) -> None:
    found = config_of(data={"corpus_path": f"/tmp/{name}"}, trainer={"default_root_dir": name})
    assert found["data"]["corpus_path"] == f"/tmp/{name}"
    assert found["trainer"]["default_root_dir"] == name


def test_values_of_every_kind() -> None:
    found = config_of(
        experiment={"seeds": range(3), "sweep": {"model.learning_rate": [1e-3, np.float64(1e-5)]}},
        recorder={"parameters": {"W": "gpt2.lm_head.weight"}, "tensors": ("embeddings", "losses")},
        launch={"slurm": {"partition": "x y"}, "max_retries": 0},
        model={"init_seed": None, "tie_word_embeddings": False},
        data__mask_path=Path("/tmp/masks"),
    )
    assert found["experiment"]["seeds"] == [0, 1, 2]
    assert found["experiment"]["sweep"] == {"model.learning_rate": [1e-3, 1e-5]}
    assert found["recorder"]["parameters"] == {"W": "gpt2.lm_head.weight"}
    assert found["recorder"]["tensors"] == ["embeddings", "losses"]
    assert found["launch"]["slurm"]["partition"] == "x y"
    assert (found["launch"]["max_retries"], found["model"]["init_seed"]) == (0, None)
    assert found["model"]["tie_word_embeddings"] is False
    assert found["data"]["mask_path"] == "/tmp/masks"


@pytest.mark.parametrize(
    "model", [Net, "tests.training.lab.Net", {"class_path": Net}, {"class_path": "tests.training.lab.Net"}]
)
def test_a_class_of_ones_own(model: Any) -> None:
    data = {"class_path": "tests.training.lab.Data", "init_args": {"batch_size": 3}}
    found = config_of(model=model, data=data, model__width=7, recorder__parameters="all")
    assert found["model"] == {**found["model"], "class_path": "tests.training.lab.Net", "width": 7}
    assert found["data"]["batch_size"] == 3


def test_what_no_other_process_can_import_is_refused() -> None:
    class Own(TiedGPT2):
        pass

    with pytest.raises(UserError, match=r"Own is defined in this notebook, script or function"):
        command_words(None, {"model": Own})
    with pytest.raises(UserError, match=r"model\.width is of type FlannelData, expected what a YAML file"):
        command_words(None, {"model__width": FlannelData.__new__(FlannelData)})
    with pytest.raises(UserError, match=r"model\.init_scale is nan, expected a finite number"):
        command_words(None, {"model__init_scale": float("nan")})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"trainer": {"max_steps": 3}, "trainer__max_steps": 4},
            r"max_steps is given twice, 3 and 4",
        ),
        (
            {"trainer": 3, "trainer__max_steps": 4},
            r"max_steps is given beside trainer as a whole, 3;",
        ),
        ({"trainer": {1: 3}}, r"trainer has the key 1, expected texts for keys"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        command_words(None, changes)


@pytest.mark.parametrize("config", ["-h", "", "--trainer.max_steps=7", "a\0b", ["a"], 3])
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match=r"config is .*, expected a YAML file"):
        command_words(config, {})


def test_the_content_of_a_config_is_taken_as_it_is() -> None:
    """Only keywords have underscores for dots."""
    given = {"model": {"class_path": "my_lab.Net", "init_args": {"my__arg": 3}}}
    assert json.loads(command_words(given, {})[1]) == given
    assert json.loads(command_words(None, {"model": {"my__arg": 3}})[1]) == {"model": {"my__arg": 3}}
    assert json.loads(command_words(None, {"model": "small.yaml"})[1]) == {"model": "small.yaml"}


@pytest.mark.parametrize("name", ["print_config", "help"])
def test_options_of_the_command_line(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is an option of the command line, e.g. flannel-pl fit --"):
        command_words("quickstart", {name: True})


def test_a_class_inside_a_group_has_arguments() -> None:
    words = command_words(None, {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 0.3})
    expected = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}
    assert json.loads(words[-1]) == {"model": {"optimizer": expected}}
    words = command_words(None, {"model": {"optimizer": "torch.optim.SGD"}, "model__optimizer__lr": 0.3})
    assert json.loads(words[-1]) == {"model": {"optimizer": expected}}
    more = {**expected, "init_args": {"momentum": 0.9}}
    words = command_words(None, {"model__optimizer": more, "model__optimizer__lr": 0.3})
    assert json.loads(words[-1])["model"]["optimizer"]["init_args"] == {"momentum": 0.9, "lr": 0.3}
