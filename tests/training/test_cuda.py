"""`fit` on a CUDA device: the notebook's bits, going on with the same, and several runs on one device."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.corpus.store import load_corpus
from flannel_pl.experiment import RunPaths
from flannel_pl.launch.events import read_events
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.info import describe_recording
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.on_cuda import DEVICE, MARKS, REHEARSES, repeatable
from tests.training.test_fidelity import FLANNEL3, GRID, GROUP, assert_same_bits, reference, small_fit
from tests.training.test_own_classes import ALL, words
from tests.training.test_own_classes import bits_of as bits_of_all
from tests.training.test_resume import SCALED, StopAfter, bits_of, fit

__all__ = ["repeatable"]
pytestmark = [*MARKS, pytest.mark.usefixtures("repeatable")]

HERE = ["--trainer.accelerator", DEVICE]
DETERMINISTIC = ["--trainer.deterministic", "true"]


@pytest.mark.parametrize("settings", GRID)
def test_small_sizes_equal_the_notebook(
    small_data: SmallData, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"max_steps": 10, "max_seq_len": 16, "batch_size": 4, **settings}
    overrides = [f"--{GROUP.get(key, 'model')}.{key}={value}" for key, value in settings.items()]
    shard = small_fit(small_data, tmp_path, *HERE, *DETERMINISTIC, *overrides)
    tokens = load_corpus(
        corpus_path=small_data.corpus, tokenizer_path=small_data.tokenizer, vocab_size=SMALL_VOCAB_SIZE
    ).tokens
    sizes = {"vocab_size": SMALL_VOCAB_SIZE, "hidden_dim": 16}
    expected = reference(tokens, seed=43, output_dir=tmp_path, device=DEVICE, **sizes, **settings)
    assert_same_bits(shard, expected)


def test_runs_that_share_a_device_equal_the_notebook(tmp_path: Path) -> None:
    command = ["fit", "--config", str(FLANNEL3), "--experiment.seeds", "42..45", "--trainer.max_steps", "12"]
    command += [*HERE, "--launch.runs_per_device", "4", "--launch.threads_per_run", "1"]
    assert main([*command, "--experiment.output_dir", str(tmp_path)]) == 0
    tokens = load_corpus(vocab_size=10_000).tokens
    folder = tmp_path / "flannel3"
    for run, seed in enumerate((42, 43, 44, 45)):
        expected = reference(tokens, seed=seed, max_steps=12, output_dir=tmp_path, device=DEVICE)
        assert_same_bits(folder / "flannel3.safetensors", expected, prefix=f"run_{run}_")
    assert verify(folder).ok


@pytest.mark.skipif(REHEARSES, reason="of a CUDA device")
def test_what_trains_is_said(small_data: SmallData, tmp_path: Path) -> None:
    """And nobody but the runs has a context on the device."""
    look = "import sys, torch\nfrom flannel_pl.__main__ import main\ncode = main(sys.argv[1:])\n"
    look += "assert not torch.cuda.is_initialized(), 'the launcher is on the device'\nsys.exit(code)"
    command = ["fit", *small_data.arguments, "--trainer.accelerator", "auto", "--experiment.seeds", "1..3"]
    command += ["--trainer.max_steps", "6", "--launch.runs_per_device", "2"]
    command += ["--experiment.output_dir", str(tmp_path)]
    for verb in ("plan", "fit"):
        done = subprocess.run(
            [sys.executable, "-c", look, verb, *command[1:]], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "cuda:0" in done.stdout + done.stderr
    assert torch.cuda.get_device_name() in describe_recording(tmp_path / "flannel")
    with flannel_pl.open_recording(tmp_path / "flannel") as recording:
        assert len(recording) == 3
    assert verify(tmp_path / "flannel").ok


OPTIONS = {
    "plain": [],
    "accumulated": ["--trainer.accumulate_grad_batches", "3"],
    "float32, dead": ["--model.param_dtype", "float32", "--recorder.tokens", "dead"],
    "skipped steps": [
        *("--trainer.precision", "null", "--model.param_dtype", "float32"),
        *("--trainer.plugins", SCALED.replace('"device": "cpu"', f'"device": "{DEVICE}"')),
    ],
    "averaged": ["--trainer.callbacks+=EMAWeightAveraging"],
}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    return StopAfter(monkeypatch)


@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback with a model that overrides")
@pytest.mark.parametrize("options", OPTIONS)
def test_stopped_twice_and_gone_on(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, options: str
) -> None:
    arguments = [*HERE, *DETERMINISTIC, *OPTIONS[options]]
    assert fit(small_data, tmp_path / "calm", *arguments) == 0
    for step in (7, 18):
        stop_after(step)
        assert fit(small_data, tmp_path / "stopped", *arguments) == 143
        stop_after.undo()
    assert fit(small_data, tmp_path / "stopped", *arguments) == 0
    assert bits_of(tmp_path / "stopped") == bits_of(tmp_path / "calm")


def test_a_run_with_dropout_that_is_killed_goes_on_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    given = ["--model", "tests.training.lab.Net", "--data", "tests.training.lab.Data", *ALL]
    given += ["--launch.checkpoint_every", "4", "--experiment.seeds", "1..2", "--launch.devices", "1"]
    assert main(["fit", *given, *words(tmp_path / "a", *HERE, steps=15)]) == 0
    killed = tmp_path / "killed"
    assert main(["fit", *given, "--model.killed", str(killed), *words(tmp_path / "b", *HERE, steps=15)]) == 0
    assert killed.exists()
    events = read_events(tmp_path / "b/x/events.jsonl")
    first_rows = [event["first_row"] for event in events if event["event"] == "training_started"]
    assert sorted(first_rows) == [0, 0, 9]
    assert bits_of_all(tmp_path / "a/x") == bits_of_all(tmp_path / "b/x")
    assert verify(tmp_path / "b/x").ok


def test_runs_on_one_device_that_are_stopped_go_on_in_another_process(
    small_data: SmallData, tmp_path: Path
) -> None:
    """What a deterministic Trainer sets for its process is no other environment."""
    given = [*small_data.arguments, *HERE, *DETERMINISTIC, "--experiment.seeds", "1..2"]
    given += [
        "--trainer.max_steps",
        "400",
        "--launch.runs_per_device",
        "2",
        "--launch.checkpoint_every",
        "20",
    ]
    given += ["--launch.threads_per_run", "1"]
    environment = {name: x for name, x in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}

    def start(name: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "flannel_pl", "fit", *given, "--experiment.output_dir"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*words, str(tmp_path / name)], env=environment, stdout=pipe, stderr=pipe, text=True
        )

    calm, stopped = start("calm"), start("stopped")
    runs = [RunPaths(tmp_path / "stopped" / "flannel" / f"run_{index}") for index in (0, 1)]
    while not all(run.checkpoints() for run in runs):
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.02)
    stopped.terminate()
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, said
    assert not all(run.recording.exists() for run in runs), "nothing was stopped"
    again = start("stopped")
    _, said = again.communicate(timeout=100)
    assert again.returncode == 0, said
    calm.communicate(timeout=100)
    assert bits_of_all(tmp_path / "calm" / "flannel") == bits_of_all(tmp_path / "stopped" / "flannel")


def test_float16_with_lightnings_own_scaler(small_data: SmallData, tmp_path: Path) -> None:
    arguments = [*HERE, *DETERMINISTIC, "--model.param_dtype", "float32"]
    arguments += ["--trainer.precision", "bf16-mixed" if REHEARSES else "16-mixed"]
    for name in ("a", "b"):
        assert fit(small_data, tmp_path / name, *arguments) == 0
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "b")
    assert REHEARSES or "skipped" in bits_of(tmp_path / "a")
    assert verify(tmp_path / "a" / "flannel").ok


@pytest.mark.skipif(REHEARSES, reason="of a CUDA device")
def test_a_run_that_the_device_has_no_memory_for_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "tests.training.lab.Hungry", "--data", "tests.training.lab.Data", *ALL]
    given += ["--experiment.seeds", "1..2", "--launch.max_retries", "0"]
    assert main(["fit", *given, *words(tmp_path, *HERE)]) == 1
    assert "OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out
