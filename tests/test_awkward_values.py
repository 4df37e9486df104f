"""Names, paths and values that YAML, fsspec or Python may take for something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.cli.ahead import is_begun
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.recording.sameness import meaning
from flannel_pl.training.cli import resolve
from tests.test_bad_input import Refuser, refuse

__all__ = ["refuse"]


def test_a_callback_whose_default_is_an_enumeration(refuse: Refuser) -> None:
    code, message = refuse("--trainer.callbacks+=tests.training.odd_classes.Colored", verb="plan")
    assert "a value of trainer cannot be written down" in message
    assert "Color.red" in message
    assert code == 2
    config = resolve(["--trainer.callbacks+=Timer"])  # whose enumeration is one of texts
    assert config["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"


ELSEWHERE = [
    ("--experiment.name a::b", "has '::' in it, which Lightning takes for a chain of addresses"),
    ("--experiment.output_dir a::b", "has '::' in it"),
    (
        "--experiment.output_dir s3://bucket/x",
        "experiment.output_dir is 's3:/bucket/x', but files are read and",
    ),
    ("--experiment.output_dir file:///x", "experiment.output_dir is 'file:/x'"),
    ("--data.corpus_path gs://bucket/x", "data.corpus_path is 'gs:/"),
    ("--recorder.tokens hdfs://host/x", "recorder.tokens is 'hdfs://host/x', but files are read"),
    (
        "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath a::b",
        "a folder of trainer is 'a::b'",
    ),
    (
        "--trainer.logger CSVLogger --trainer.logger.save_dir memory://x",
        "a folder of trainer is 'memory://x'",
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), ELSEWHERE, ids=[case[0] for case in ELSEWHERE])
def test_no_file_goes_elsewhere(refuse: Refuser, arguments: str, expected: str) -> None:
    code, message = refuse(*arguments.split(), verb="plan")
    assert expected in message
    assert code == 2


REPEATED = [
    {"model.learning_rate": ["1e-3", 0.001]},
    {"model.learning_rate": [1, 1.0]},
    {"model.tie_word_embeddings": [True, "true"]},
    {"model.n_layer": [1, 2, 1]},
    {"model.n_layer": [1, 2], "model.weight_decay": [0, 0.0]},
    {"trainer.gradient_clip_val": [1, 1.0]},
    # One meaning in several words.
    {"model.init_on": ["cpu", "device"]},
    {"trainer.gradient_clip_val": [None, 0]},
    {"trainer.gradient_clip_algorithm": [None, "norm"]},
    {"trainer.gradient_clip_val": [0], "trainer.gradient_clip_algorithm": ["value", "norm"]},
    {"trainer.deterministic": [None, False]},
    {"trainer.benchmark": [None, False]},
    {"trainer.benchmark": [True, False]},
    {"trainer.min_steps": [None, 0]},
    {"trainer.min_epochs": [None, 0]},
    {"trainer.max_epochs": [None, -1]},
    {"trainer.limit_train_batches": [None, 1.0]},
    {"trainer.overfit_batches": [0, 0.0]},
    {"trainer.limit_val_batches": [3, 4]},
    {"trainer.inference_mode": [True, False]},
    {"trainer.callbacks": [None, []]},
    {"trainer.log_every_n_steps": [1, 50]},
    {"trainer.strategy": ["auto", "single_device"]},
    {"model.init_seed": [1, "1"]},
    {"model.init_seed": [7], "data.order_seed": [8]},  # nothing is left to the seed
    {"trainer.accumulate_grad_batches": [1, "1"]},
    {"trainer.max_steps": [2, "2"]},
    {"data.batch_size": ["4", 4]},
]


@pytest.mark.parametrize("sweep", REPEATED, ids=map(str, REPEATED))
def test_a_sweep_trains_nothing_twice(refuse: Refuser, sweep: dict[str, object]) -> None:
    code, message = refuse("--experiment.sweep", json.dumps(sweep), "--experiment.seeds", "1..2", verb="plan")
    assert "which are the same" in message
    assert code == 2


def test_a_sweep_that_repeats_the_seed(refuse: Refuser) -> None:
    sweep = {"model.init_seed": [None, 2]}
    code, message = refuse("--experiment.sweep", json.dumps(sweep), "--experiment.seeds", "2", verb="plan")
    assert '{"model.init_seed": null} and {"model.init_seed": 2}, which are the same' in message
    assert code == 2


DIFFERENT = [
    {"model.init_on": ["cpu", "device"], "model.init_seed": [1, 2**53, 2**53 + 1], "data.order_seed": [0]},
    {"trainer.limit_train_batches": [1, 1.0]},
    {"trainer.gradient_clip_val": [0, 1], "trainer.gradient_clip_algorithm": ["value"]},
    {"trainer.gradient_clip_val": [1], "trainer.gradient_clip_algorithm": ["value", "norm"]},
    {"model.init_scale": [0.0, -0.0]},
    {"trainer.max_epochs": [None, 1]},
    {"model.lr_schedule": ["linear", "constant"]},
]


@pytest.mark.parametrize("sweep", DIFFERENT, ids=map(str, DIFFERENT))
def test_runs_that_differ_mean_something_else(sweep: dict[str, object]) -> None:
    config = resolve(["--experiment.sweep", json.dumps(sweep), "--trainer.max_steps", "3"])
    experiment = ResolvedExperiment.from_config(config)
    meant = [
        json.dumps(meaning(experiment.run_config(run).content, accelerator="cuda", known=run.swept))
        for run in experiment.runs
    ]
    assert len(set(meant)) == len(meant)


def test_texts_in_a_sweep_are_read_as_what_their_keys_are() -> None:
    sweep = {
        "trainer.max_steps": ["3", 4],
        "model.learning_rate": ["1e-3"],
        "model.tie_word_embeddings": ["false"],
        "trainer.precision": ["bf16-mixed", None],
        "data.corpus_path": ["1", "null"],
    }
    assert resolve(["--experiment.sweep", json.dumps(sweep)])["experiment"]["sweep"] == {
        **sweep,
        "trainer.max_steps": [3, 4],
        "model.learning_rate": [0.001],
        "model.tie_word_embeddings": [False],
    }


@pytest.mark.parametrize(
    "first", [pytest.param("int, float, None", marks=pytest.mark.slow), "float, int, None"]
)
def test_one_batch_stays_one_batch(first: str) -> None:
    said = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import typing; typing.Optional[typing.Union[{first}]]\n"
            "import flannel_pl.cli.fit\n"
            "from flannel_pl.training.cli import resolve, parse_config\n"
            "config = resolve(['--trainer.limit_train_batches', '1', '--trainer.max_steps', '3'])\n"
            "print(config['trainer']['limit_train_batches'], config['trainer']['overfit_batches'],"
            " parse_config(config)['trainer']['limit_train_batches'])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "1 0.0 1\n"


@pytest.mark.parametrize(
    "content",
    ["[", "7", "[]", "{experiment: 7}", "{experiment: [1, 2]}", "{experiment: {name: [}}", "\0", "[" * 9999],
)
def test_a_guess_from_an_odd_config_is_no(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.yaml").write_text(content)
    assert not is_begun(["--config", str(tmp_path / "odd.yaml")])
    assert not is_begun(["--experiment.output_dir", "~nobody-of-that-name/x"])
    assert not is_begun(["--config"])


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path) -> None:
    for name in ("torch", "numpy", "yaml", "sitecustomize", "safetensors", "mine"):
        (tmp_path / f"{name}.py").write_text(f"open('imported {name}', 'w')\nclass Mine: pass\n")
    program = [sys.executable, "-m", "flannel_pl"]
    for words in (["status", "."], ["info", "."], ["verify", "."]):
        subprocess.run([*program, *words], cwd=tmp_path, capture_output=True, check=False)
    callback = ["plan", "--trainer.callbacks+=mine.Mine"]
    answer = subprocess.run([*program, *callback], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "No module named 'mine'" in answer.stderr or "mine.Mine" in answer.stderr
    assert not list(tmp_path.glob("imported *"))
