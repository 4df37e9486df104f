"""What a user reads of a value that is not taken: the key, what it is, what it may be, in one short line."""

from pathlib import Path

import pytest

from flannel_pl.errors import UserError
from flannel_pl.training.cli import resolve

CALLBACK = "--trainer.callbacks+=EarlyStopping"
NO_CLASS = "give a class of Lightning's, or the path to import one from"

CASES = [
    (
        "--launch.devices many",
        "has many, expected a whole number, a list of whole numbers or auto",
    ),
    (
        "--launch.devices [1,x]",
        "launch.devices has [1, 'x'], expected a whole number, a list of whole numbers or auto",
    ),
    ("--model.param_dtype f8", "model.param_dtype is f8, expected bfloat16 or float32"),
    ("--model.learning_rate fast", "model.learning_rate is fast, expected a number"),
    (
        "--model {n_layer:x}",
        "model is '{n_layer:x}', expected its keys with their values, or a config",
    ),
    (
        "--data nofile.yaml",
        "data is 'nofile.yaml', expected its keys with their values, or a config",
    ),
    ("--data.batch_size=", "data.batch_size is '', expected a whole number"),
    ("--trainer.max_steps 1.5", "trainer.max_steps is 1.5, expected a whole number"),
    ("--trainer.max_steps null", "trainer.max_steps is None, expected a whole number"),
    ("--trainer.deterministic maybe", "trainer.deterministic is maybe, expected true or false, warn or null"),
    (
        "--trainer.limit_train_batches x",
        "is x, expected a whole number, a number or null",
    ),
    ("--trainer.callbacks+=Nope", f"trainer.callbacks: there is no 'Nope'; {NO_CLASS}"),
    ("--trainer.logger Nope", f"trainer.logger: there is no 'Nope'; {NO_CLASS}"),
    ("--trainer.callbacks+=mine.Mine", "trainer.callbacks: No module named 'mine'"),
    (CALLBACK, "trainer.callbacks: the following arguments are required: monitor"),
    (f"{CALLBACK} --trainer.callbacks.patience x", "patience is x, expected a whole number"),
    (
        f"{CALLBACK} --trainer.callbacks.patiense 3",
        "Option 'patiense' is not accepted; did you mean patience?",
    ),
    (
        "--trainer.plugins [MixedPrecision]",
        "trainer.plugins: the following arguments are required: precision",
    ),
    ("--experiment.sweep 7", "experiment.sweep has 7, expected keys with a list of values each"),
    (
        "--experiment.sweep {model.n_layer:3}",
        "has {model.n_layer:3}, expected keys with a list",
    ),
    (
        "--experiment.name -x",
        "--experiment.name: expected one argument; give it one, e.g. --experiment.name=-x",
    ),
    ("--experiment.run x", "experiment.run is x, expected a whole number or null"),
    ("--launch.slurm.extra x", "launch.slurm.extra has x, expected a list of texts"),
    ("--launch.slurm.gpus_per_run 2", "launch.slurm.gpus_per_run is 2, expected 0 or 1"),
    ("--recorder.dtypes x", "recorder.dtypes has x, expected keys with values or null"),
    ("--config nowhere.yaml", "there is no config '/"),
    ("--experiment {name:3e-4}", "experiment is '{name:3e-4}', expected"),
]


@pytest.mark.parametrize(("arguments", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_refusal_is_short_and_says_what_to_do(arguments: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(arguments.split())
    message = str(caught.value)
    assert expected in message
    assert len(message) < 220
    for inner in ("Parser key", "<class", "typing.", "Union", "Namespace", "\n"):
        assert inner not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model: {n_layer: x}", "model.n_layer is x, expected a whole number"),
        ("experiment: {name: 3e-4}", "experiment.name is 0.0003, expected a text; write it in quotes"),
        ("experiment: {name: yes}", "experiment.name is True, expected a text; write it in quotes"),
        ("recorder: {tokens: [1]}", "recorder.tokens is [1], expected a text; write it in quotes"),
        ("launch: {slurm: {time: 3}}", "launch.slurm.time is 3, expected a text or null; write it in quotes"),
        ("trainer: {callbacks: [{class_path: EarlyStopping}]}", "arguments are required: monitor"),
        ("# nothing", "the config has no keys, expected e.g. model: {n_layer: 2}"),
        ("", "the config has no keys"),
        ("[1]", "the config has no keys"),
    ],
)
def test_a_refusal_of_what_is_in_a_file(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        resolve(["--config", str(tmp_path / "config.yaml")])
    assert expected in str(caught.value)
