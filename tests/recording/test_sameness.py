"""What decides bits: every key of a config that is not on the list of those that do not."""

import json
from typing import Any

import pytest

from flannel_pl.dotted import flatten
from flannel_pl.recording.sameness import INCIDENTAL, LATER, decisive, differences
from flannel_pl.training.cli import resolve

HARMLESS = {
    *("launch.", "trainer.accelerator", "trainer.devices", "trainer.logger", "trainer.log_every_n_steps"),
    *("trainer.profiler", "trainer.enable_", "trainer.default_root_dir", "trainer.model_registry"),
    *("data.corpus_path", "data.tokenizer_path", "data.mask_path", "experiment.", "seed_everything"),
    "recorder.live",
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return resolve(["--trainer.max_steps", "3"])


def test_every_key_counts_but_those_on_the_list(config: dict[str, Any]) -> None:
    keys = {key for key, _ in flatten(config)}
    assert {key for key in keys if not key.startswith(tuple(HARMLESS))} == set(decisive(config))
    for key in INCIDENTAL:  # none is there in vain, or misspelt
        assert any(f"{known}.".startswith(f"{key}.") for known in keys), key


def test_a_key_nobody_knows_counts() -> None:
    assert decisive({"new": {"key": 1}, "launch": {"key": 1}}) == {"new.key": 1}


def test_one_normal_form() -> None:
    read = {"trainer": {"callbacks": [{"init_args": {"scheduling": {"4": 2}}}], "max_time": None}}
    made = {"trainer": {"callbacks": [{"init_args": {"scheduling": {4: 2}}}]}}
    assert list(differences(decisive(read), decisive(made))) == []
    other = {"trainer": {"callbacks": [], "max_time": "1:00"}}
    assert list(differences(decisive(read), decisive(other))) == [
        ("trainer.callbacks", read["trainer"]["callbacks"], []),
        ("trainer.max_time", None, "1:00"),
    ]


def test_what_is_below_a_key_that_is_left_out_is_left_out_too() -> None:
    config = {"trainer": {"logger": {"class_path": "a"}, "loggers": 1, "plugins": {"class_path": "b"}}}
    assert decisive(config, without=["trainer.plugins"]) == {"trainer.loggers": 1}


def test_one_batch_is_not_all_batches() -> None:
    one, whole = (
        {"trainer": {"limit_train_batches": value, "gradient_clip_val": value}} for value in (1, 1.0)
    )
    assert list(differences(decisive(one), decisive(whole))) == [("trainer.limit_train_batches", "1", "1.0")]


def test_what_decides_bits_is_the_same_again_when_it_was_written_down() -> None:
    """A checkpoint has it as text, and it is compared with what a config says then."""
    config: dict[str, Any] = {"trainer": {"overfit_batches": 0.0, "limit_train_batches": 1, "max_steps": 3}}
    kept: dict[str, Any] = json.loads(json.dumps(decisive(config)))
    again = decisive(kept)
    assert list(differences(again, decisive(config))) == []
    other = decisive({"trainer": {**config["trainer"], "limit_train_batches": 1.0}})
    assert [key for key, _, _ in differences(again, other)] == ["trainer.limit_train_batches"]


def test_a_config_from_before_some_keys_means_what_it_meant() -> None:
    now = resolve(["--trainer.max_steps", "3"])
    before = json.loads(json.dumps(now))
    for key in (*LATER, "model.optimizer", "model.ff_dim"):
        group, _, name = key.partition(".")
        del before[group][name]
    assert list(differences(decisive(before), decisive(now))) == []
    flat = {key: value for key, value in flatten(before) if value is not None}  # as a checkpoint keeps it
    assert list(differences(decisive(flat), decisive(now))) == []
    changed = json.loads(json.dumps(now))
    changed["data"]["windows"] = "disjoint"
    assert list(differences(decisive(before), decisive(changed))) == [
        ("data.windows", "overlapping", "disjoint")
    ]
    # Of another class nobody knows what its arguments are.
    own = {"model": {"class_path": "my_lab.Net", "width": 3}}
    assert decisive(own) == {"model.class_path": "my_lab.Net", "model.width": 3}
