"""Settings of the Trainer that cannot work are refused before anything is made, by plan and fit alike."""

import os
from pathlib import Path

import pytest
import torch

from flannel_pl.__main__ import main
from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, Slot
from flannel_pl.training.cli import resolve
from flannel_pl.training.rehearsal import rehearse
from flannel_pl.training.trainer import build
from flannel_pl.training.used import refuse_replaced
from flannel_pl.training.worker import _train
from tests.conftest import SmallData
from tests.test_bad_input import Refuser, refuse

__all__ = ["refuse"]

CALLBACK = "--trainer.callbacks+="
MONITOR = "--trainer.callbacks.monitor"
ODD = "tests.training.odd_classes"

REFUSED = [
    ("--trainer.barebones true", "trainer.barebones is true, which cannot work"),
    ("--trainer.gradient_clip_algorithm foo", "trainer.gradient_clip_algorithm is foo, which cannot work"),
    ("--trainer.gradient_clip_algorithm foo", "Allowed algorithms: ['value', 'norm']; change it, or leave"),
    ("--trainer.logger NeptuneLogger", "trainer.logger"),
    (
        "--trainer.logger CometLogger",
        "trainer.logger is CometLogger, which cannot work: Requirement 'comet-ml",
    ),
    ("--trainer.profiler nope", "trainer.profiler is nope, which cannot work"),
    ("--trainer.precision transformer-engine", "trainer.precision is transformer-engine, which cannot work"),
    ("--trainer.limit_train_batches 0", "trainer.limit_train_batches is 0"),
    ("--trainer.limit_train_batches 0", "there is nothing to train"),
    ("--trainer.limit_train_batches 0.0001", "trainer.limit_train_batches is 0.0001, which cannot work"),
    ("--trainer.limit_train_batches 2.5", "trainer.limit_train_batches is 2.5, which cannot work"),
    ("--trainer.overfit_batches 0.00001", "trainer.overfit_batches is 1e-05, which cannot work"),
    ("--trainer.val_check_interval 100000", "trainer.val_check_interval is 100000, which cannot work"),
    ("--trainer.reload_dataloaders_every_n_epochs -1", "should be an int >= 0, got -1"),
    ("--trainer.max_epochs -5", "trainer.max_epochs is -5, which cannot work"),
    ("--trainer.max_time 00:00:00:xx", "trainer.max_time is 00:00:00:xx, which cannot work"),
    ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches is 0, expected at least 1"),
    ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val is -1"),
    ("--trainer.min_steps 10", "trainer.min_steps is 10, more than trainer.max_steps 3"),
    (
        f"{CALLBACK}RichProgressBar --experiment.seeds 1..2",
        "trainer.callbacks has RichProgressBar, but several",
    ),
    (f"{CALLBACK}RichProgressBar {CALLBACK}TQDMProgressBar", "only one progress bar is supported"),
    (f"{CALLBACK}RichProgressBar --trainer.enable_progress_bar false", "but found `RichProgressBar`"),
    (f"{CALLBACK}ModelCheckpoint {CALLBACK}ModelCheckpoint", "is [ModelCheckpoint, ModelCheckpoint], which"),
    (f"{CALLBACK}LearningRateMonitor --trainer.logger false", "trainer.logger is false, which cannot work"),
    (f"{CALLBACK}BackboneFinetuning", "trainer.callbacks is [BackboneFinetuning], which cannot work"),
    (f"{CALLBACK}BatchSizeFinder", "trainer.callbacks has BatchSizeFinder, which trains with other values"),
    (
        f"{CALLBACK}EarlyStopping {MONITOR} val",
        "EarlyStopping with monitor 'val', but what is logged is loss",
    ),
    (f"{CALLBACK}ModelCheckpoint {MONITOR} val", "logged is epoch, loss, step; monitor one of these"),
    (f"{CALLBACK}EarlyStopping {MONITOR} loss --trainer.callbacks.mode up", "`mode` can be min, max, got up"),
    (
        f"{CALLBACK}{ODD}.Failing --trainer.callbacks.error odd",
        "trainer.callbacks is [Failing], which cannot",
    ),
    (
        "--trainer.profiler nope --trainer.gradient_clip_algorithm foo",
        "trainer.profiler is nope, which cannot work: When passing string value for the `profiler`",
    ),
    (
        '--experiment.sweep {"trainer.gradient_clip_algorithm":["norm","foo"]}',
        "algorithm is foo, which cannot",
    ),
]

REPLACED = [
    (
        "--trainer.precision 16-mixed",
        "trainer.precision is 16-mixed, but with the other settings of trainer, on cpu, Lightning would "
        "train with bf16-mixed, and the recording would not say so; ask for bf16-mixed, or leave it out",
    ),
    ("--trainer.precision 16", "trainer.precision is 16, but with the other settings"),
    ("--trainer.precision 16-true", "model.param_dtype is bfloat16, but with trainer.precision 16-true"),
    ("--trainer.precision 64", "Lightning would train weights of type float64, and the recording would not"),
    (
        "--trainer.precision bf16-true --model.param_dtype float32",
        "model.param_dtype is float32, but with trainer.precision bf16-true Lightning would train weights of",
    ),
    (
        '--trainer.precision bf16-true --experiment.sweep {"model.param_dtype":["bfloat16","float32"]}',
        "leave out trainer.precision, or choose one that ends in mixed",
    ),
    (
        "--trainer.overfit_batches 3 --trainer.limit_train_batches 5",
        "trainer.limit_train_batches is 5, but with the other settings of trainer, on cpu, Lightning would "
        "train with 3",
    ),
    ("--trainer.overfit_batches 1.0 --trainer.limit_train_batches 1", "batches is 1, but with the other"),
    (
        "--trainer.max_time 00:01:00:00 --trainer.callbacks+=Timer --trainer.callbacks.duration 00:00:00:09 "
        "--trainer.callbacks.interval step",
        "trainer.max_time is 00:01:00:00, which Lightning ignores where trainer.callbacks has a Timer",
    ),
    ('--experiment.sweep {"trainer.precision":["bf16-mixed","16-mixed"]}', "precision is 16-mixed, but with"),
]
REFUSED += REPLACED


OWN = ["--model", "tests.training.lab.Net", "--data", "tests.training.lab.Data"]


@pytest.mark.parametrize("own", [[], OWN], ids=["ours", "own"])
def test_devices_are_left_alone(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: list[str]
) -> None:
    """Else a launcher takes memory of every GPU, and all of one that allows a single process."""
    touched: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda.random, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda.random, "_lazy_init", lambda: touched.append("random numbers"))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: touched.append("device"))
    # Where torch has it, it asks every GPU first.
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: touched.append("cuDNN"))
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 1)
    given = [*own, "--recorder.parameters", "all"] if own else small_data.arguments
    place = ["--experiment.output_dir", str(tmp_path), "--trainer.max_steps", "3"]
    assert main(["plan", *given, *place, "--trainer.accelerator", "cuda"]) == 0
    assert not touched


@pytest.mark.parametrize(("arguments", "expected"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_work_is_refused_before_any_file(refuse: Refuser, arguments: str, expected: str) -> None:
    code, message = refuse(*arguments.split(), verb="plan")
    assert expected in message
    assert " object at 0x" not in message
    assert code == 2


@pytest.mark.parametrize(
    "arguments",
    ["--trainer.barebones true", f"{CALLBACK}EarlyStopping {MONITOR} val", "--trainer.precision 16-mixed"],
)
def test_plan_and_fit_refuse_alike(refuse: Refuser, arguments: str) -> None:
    assert refuse(*arguments.split(), verb="plan") == refuse(*arguments.split(), verb="fit")


WORKING = [
    "--trainer.logger TensorBoardLogger",
    "--trainer.logger CSVLogger --trainer.profiler simple",
    f"--trainer.logger.class_path {ODD}.EagerLogger --trainer.logger.save_dir logs",
    f"{CALLBACK}ModelCheckpoint {MONITOR} loss {CALLBACK}EarlyStopping {MONITOR} loss",
    f"{CALLBACK}ModelCheckpoint {MONITOR} step --trainer.callbacks.dirpath best",
    f"{CALLBACK}LearningRateMonitor {CALLBACK}EarlyStopping {MONITOR} lr-AdamW/pg1",
    f"{CALLBACK}EarlyStopping {MONITOR} val --trainer.callbacks.strict false",
    f"{CALLBACK}{ODD}.Saver",
    f"{CALLBACK}RichProgressBar",
    f"{CALLBACK}{ODD}.Failing --trainer.callbacks.error KeyError",  # whose hooks nobody calls in a plan
    "--trainer.max_epochs -1",
    "--trainer.precision bf16",
    "--trainer.precision bf16-true",
    "--trainer.precision 32 --model.param_dtype float32",
    "--trainer.strategy single_device",
    "--trainer.num_sanity_val_steps -1 --trainer.limit_train_batches 2.0 --trainer.limit_val_batches 1",
    "--trainer.gradient_clip_algorithm NORM --trainer.gradient_clip_val 1",
    "--trainer.max_time 00:01:00:00 --trainer.deterministic true --trainer.benchmark true",
]


@pytest.mark.parametrize("arguments", WORKING)
def test_a_plan_leaves_nothing(
    small_data: SmallData, tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", *small_data.arguments, "--trainer.max_steps", "3", "--experiment.seeds", "7"]
    assert main([*command, "--experiment.output_dir", str(tmp_path / "out"), *arguments.split()]) == 0
    assert not (tmp_path / "out").exists()
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("experiment ")


def test_a_plan_leaves_the_process_as_it_was(small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> list[object]:
        return [
            *(
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            *(torch.backends.cudnn.benchmark, dict(os.environ)),
        ]

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for value in ("true", "warn"):
        before = settings()
        words = [*small_data.arguments, "--trainer.max_steps", "3", "--trainer.deterministic", value]
        assert main(["plan", *words, "--trainer.benchmark", "true"]) == 0
        assert settings() == before


def test_a_progress_bar_of_ones_own_in_a_single_run(small_data: SmallData, tmp_path: Path) -> None:
    command = ["fit", *small_data.arguments, "--trainer.max_steps", "2", f"{CALLBACK}RichProgressBar"]
    assert main([*command, "--experiment.output_dir", str(tmp_path)]) == 0


UNFORESEEN = [
    (f"{CALLBACK}{ODD}.Watcher {MONITOR} val", 2, "Early stopping conditioned on metric `val`"),
    (
        f"{CALLBACK}{ODD}.Failing --trainer.callbacks.error KeyError",
        2,
        "this cannot be trained: KeyError: 'odd'",
    ),
    (f"{CALLBACK}{ODD}.Failing --trainer.callbacks.error KeyError --trainer.callbacks.step 2", 1, "KeyError"),
    (f"{CALLBACK}{ODD}.Failing --trainer.callbacks.error RuntimeError", 1, "RuntimeError: odd"),
]


@pytest.mark.parametrize(("arguments", "code", "expected"), UNFORESEEN)
def test_a_run_that_would_end_so_again_ends_as_wrong_usage(
    small_data: SmallData,
    tmp_path: Path,
    arguments: str,
    code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*small_data.arguments, "--trainer.max_steps", "3", *arguments.split()]
    experiment = ResolvedExperiment.from_config(resolve([*words, "--experiment.output_dir", str(tmp_path)]))
    experiment.paths.run(0).folder.mkdir(parents=True)
    assert _train(experiment, experiment.runs[0], Slot("cpu", None, 1), 1) == code
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_is_not_the_one_of_the_slot(small_data: SmallData, tmp_path: Path) -> None:
    config = Config.of(resolve([*small_data.arguments, "--trainer.max_steps", "3"]))
    trainer = build(config, tmp_path, Slot("cpu", None, 1)).trainer
    with pytest.raises(UserError, match="to be trained on cuda:1, but Lightning would train it on cpu"):
        refuse_replaced(trainer, config, Slot("cuda", 1, 1))


def test_a_cluster_s_gpus_know_what_this_host_does_not(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small_data.arguments, "--trainer.max_steps", "3", "--trainer.precision", "16-mixed"]
    words += ["--experiment.output_dir", str(tmp_path), "--launch.launcher", "slurm"]
    experiment = ResolvedExperiment.from_config(resolve(words))
    rehearse(experiment, experiment.runs, Slot("cuda", 0, 1), elsewhere=True)
    with pytest.raises(UserError, match="precision is 16-mixed, but with"):
        rehearse(experiment, experiment.runs, Slot("cpu", None, 1), elsewhere=True)


@pytest.mark.filterwarnings("ignore:You passed .*Trainer")  # which is all that Lightning says of it
def test_a_run_is_not_trained_with_other_settings_either(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small_data.arguments, "--trainer.max_steps", "3", "--trainer.precision", "16-mixed"]
    experiment = ResolvedExperiment.from_config(resolve([*words, "--experiment.output_dir", str(tmp_path)]))
    experiment.paths.run(0).folder.mkdir(parents=True)
    assert _train(experiment, experiment.runs[0], Slot("cpu", None, 1), 1) == 2
    assert "ask for bf16-mixed, or leave it out" in capsys.readouterr().err
    assert not experiment.paths.run(0).partial.exists()
