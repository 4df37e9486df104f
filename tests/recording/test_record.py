"""experiment.json is checked once, where it is read; whatever is wrong with it is said in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.errors import RunError
from flannel_pl.experiment import ExperimentPaths, Run
from flannel_pl.recording.experiment_record import _NUMBERS, MAX_RECORD_MARKS, ExperimentRecord, read_record
from flannel_pl.recording.formats.schema import CONFIG_SCALARS
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.gathering.gathered import gathered_runs
from tests.recording.recording_samples import make_experiment

CONTENT: dict[str, Any] = {
    "schema": 1,
    "name": "exp",
    "config": {
        "experiment": {"gather": "index", "keep_shards": True, "seeds": "7..8", "sweep": {"model.a": [1]}},
        "trainer": {"max_steps": 6},
        "model": {"learning_rate": 1e-3},
        "data": {"batch_size": 4},
        "recorder": {"every_n_steps": 2},
    },
    "runs": [{"index": 0, "seed": 7, "swept": {"model.a": 1}}, {"index": 1, "seed": 8, "swept": {}}],
    "provenance": {"data": {"corpus": "ab"}},
    "settled": {"accelerator": "cpu", "threads_per_run": 3},
}


def changed(keys: str, value: Any) -> bytes:
    """Returns the record with another value at a place; `...` removes it."""
    content = json.loads(json.dumps(CONTENT))
    *outer, last = (int(key) if key.isdigit() else key for key in keys.split("/"))
    place = content
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content).encode()


def parse(keys: str, value: Any) -> ExperimentRecord:
    return ExperimentRecord.parse(changed(keys, value))


def test_a_record_has_types() -> None:
    record = ExperimentRecord.parse(json.dumps(CONTENT).encode())
    assert record.runs == (Run(0, 7, {"model.a": 1}), Run(1, 8, {}))
    assert (record.name, record.gather, record.keeps_shards) == ("exp", "index", True)
    assert (record.threads_per_run, record.data_digests) == (3, {"corpus": "ab"})
    assert (record.indices, set(record.swept_keys)) == ([0, 1], {"model.a"})
    assert (record.common("model.learning_rate"), record.common("model.b")) == (1e-3, None)
    assert record.content == CONTENT


@pytest.mark.parametrize(
    "keys",
    ["schema", "provenance", "provenance/data", "settled", "settled/threads_per_run", "config/model"]
    + ["config/data", "config/model/learning_rate"]
    + [f"config/experiment/{key}" for key in ("keep_shards", "seeds", "sweep")],
)
def test_what_an_older_version_did_not_write_has_a_default(keys: str) -> None:
    record = parse(keys, ...)
    assert record.keeps_shards
    assert record.config["launch"] == {}
    assert len(record.runs) == 2


WRONG = [
    ("schema", 2, "schema is 2, expected 1"),
    ("name", "a/b", "name is 'a/b', expected a plain folder name"),
    ("name", ..., "name is None, expected a plain folder name"),
    ("config", [], "config is [], expected an object"),
    ("config/experiment", 7, "config.experiment is 7, expected an object"),
    ("config/trainer", None, "config.trainer is None, expected an object"),
    ("config/model", [1], "config.model is [1], expected an object"),
    ("config/experiment/gather", "both", "experiment.gather is 'both', expected single, index or none"),
    ("config/experiment/gather", {}, "experiment.gather is {}, expected single, index or none"),
    ("config/experiment/gather", ..., "experiment.gather is None, expected single, index or none"),
    ("config/experiment/keep_shards", {}, "experiment.keep_shards is {}, expected true or false"),
    ("config/experiment/keep_shards", 0, "experiment.keep_shards is 0, expected true or false"),
    ("config/experiment/keep_shards", None, "experiment.keep_shards is None, expected true or false"),
    ("config/experiment/sweep", [], "experiment.sweep is [], expected an object"),
    ("config/experiment/seeds", "a..b", "experiment.seeds is 'a..b', expected 42..51"),
    ("config/experiment/seeds", [1, "2"], "experiment.seeds is [1, '2'], expected 42..51"),
    ("config/experiment/seeds", {}, "experiment.seeds is {}, expected 42..51"),
    ("config/trainer/max_steps", 0, "trainer.max_steps is 0, expected a whole number, at least 1"),
    ("config/trainer/max_steps", True, "trainer.max_steps is True, expected a whole number"),
    ("config/trainer/max_steps", 3.0, "trainer.max_steps is 3.0, expected a whole number"),
    ("config/trainer/max_steps", "6", "trainer.max_steps is '6', expected a whole number"),
    ("config/trainer/max_steps", ..., "trainer.max_steps is None, expected a whole number"),
    ("config/recorder/every_n_steps", -1, "recorder.every_n_steps is -1, expected a whole number"),
    ("config/recorder", ..., "recorder.every_n_steps is None, expected a whole number"),
    ("config/model/learning_rate", "x", "model.learning_rate is 'x', expected a number"),
    ("config/model/learning_rate", True, "model.learning_rate is True, expected a number"),
    ("config/model/learning_rate", 1e300, "model.learning_rate is 1e+300, expected a number"),
    ("runs", {}, "runs is {}, expected a list of at least one run"),
    ("runs", [], "runs is [], expected a list of at least one run"),
    ("runs/0", 7, "runs[0] is 7, expected an object"),
    ("runs/1/index", 0, "runs[1] has the index 0, expected 1"),
    ("runs/1/index", True, "runs[1] has the index True, expected 1"),
    ("runs/0/seed", None, "runs[0] has the seed None, expected a number from 0 to 2**32 - 1"),
    ("runs/0/seed", -1, "runs[0] has the seed -1, expected a number from 0"),
    ("runs/0/seed", 1.5, "runs[0] has the seed 1.5, expected a number from 0"),
    ("runs/0/swept", [], "runs[0].swept is [], expected an object"),
    ("runs/0/swept", "abc", "runs[0].swept is 'abc', expected an object"),
    ("runs/0/swept", ..., "runs[0].swept is None, expected an object"),
    ("runs/0/swept", {"trainer.max_steps": "9"}, "runs[0].swept: trainer.max_steps is '9', expected a whole"),
    ("runs/0/swept", {"model.init_scale": []}, "runs[0].swept: model.init_scale is [], expected a number"),
    ("provenance", 7, "provenance is 7, expected an object"),
    ("provenance/data", "abc", "provenance.data is 'abc', expected an object"),
    ("provenance/data", None, "provenance.data is None, expected an object"),
    ("provenance/data", {"masks": 7}, "provenance.data.masks is 7, expected the hash of its content"),
    ("settled", "cpu", "settled is 'cpu', expected an object"),
    ("settled/threads_per_run", "3", "settled.threads_per_run is '3', expected a whole number"),
    ("settled/accelerator", 0, "settled.accelerator is 0, expected e.g. cpu"),
    ("config/data/x", float("nan"), "it has the number 'NaN'"),
    ("config/data/x", float("-inf"), "it has the number '-Infinity'"),
    ("config/data/x", 2**64, "it has the number '18446744073709551616'"),
]


@pytest.mark.parametrize(("keys", "value", "words"), WRONG, ids=[f"{w[0]} {w[1]!r}" for w in WRONG])
def test_anything_else_is_named(tmp_path: Path, keys: str, value: Any, words: str) -> None:
    paths = ExperimentPaths(tmp_path, tmp_path.name)
    paths.record.write_bytes(changed(keys, value))
    with pytest.raises(RunError) as caught:
        read_record(paths)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"Cannot read {paths.record}: ")
    assert message.endswith(". Bring back the file as flannel-pl fit wrote it.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "it holds [], expected an object"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "its JSON is nested too deeply"),
        (
            changed("config/data/x", 0).replace(b'"x": 0', b'"x": ' + b"[" * 60 + b"]" * 60),
            "nested too deeply",
        ),
        (changed("config/data/x", 0).replace(b'"x": 0', b'"x": 1e999'), "it has the number '1e999'"),
        (changed("config/data/x", 0).replace(b'"x": 0', b'"x": ' + b"9" * 9999), "it has the number '9999"),
        (b'{"name": "a", "name": "b"}', "a key is there twice"),
        (b'{"x": [' + b"[]," * MAX_RECORD_MARKS + b"0]}", "it lists more than any experiment has"),
    ],
)
def test_what_is_no_json_is_refused_at_once(text: bytes, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        ExperimentRecord.parse(text)
    assert words in str(caught.value)


def test_the_numbers_of_a_gathered_recording_are_checked() -> None:
    assert {"trainer.max_steps", *_NUMBERS} == set(CONFIG_SCALARS.values())


@pytest.mark.parametrize(
    "use", [lambda paths: gather(paths.folder), lambda paths: gathered_runs(paths.folder)]
)
def test_no_shard_is_deleted_for_a_setting_that_is_none(
    tmp_path: Path, use: Callable[[ExperimentPaths], object]
) -> None:
    paths = make_experiment(tmp_path / "exp", num_runs=2)
    record = json.loads(paths.record.read_text())
    record["config"]["experiment"]["keep_shards"] = {}
    paths.record.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"experiment\.keep_shards is \{\}, expected true or false"):
        use(paths)
    assert all(paths.run(index).recording.exists() for index in (0, 1))
