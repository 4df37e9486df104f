"""Recordings equal the notebook's own training bit for bit; see docs/fidelity.md."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from flannel_pl.__main__ import main
from flannel_pl.corpus.store import load_corpus
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.training.notebook_reference import NAMES, notebook_recording

FLANNEL3 = Path(__file__).parents[2] / "configs" / "flannel3.yaml"


def reference(tokens: np.ndarray[Any, Any], *, num_threads: int = 1, **settings: Any) -> dict[str, Tensor]:
    """The notebook's tensors. What transformers warns about in the notebook's code is not ours to judge."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return notebook_recording(tokens, **settings)
    finally:
        torch.set_num_threads(before)


def assert_same_bits(file: Path, expected: dict[str, Tensor], *, prefix: str = "") -> None:
    with safe_open(file, framework="pt") as recording:
        for name in NAMES:
            actual = recording.get_tensor(prefix + name)
            assert actual.dtype == expected[name].dtype, name
            assert actual.shape == expected[name].shape, name
            # As bytes, so that NaN equals NaN and 0.0 differs from -0.0.
            same = actual.contiguous().view(torch.uint8) == expected[name].contiguous().view(torch.uint8)
            assert same.all(), f"{name} differs, first in row {int((~same).nonzero()[0, 0])}"


def small_fit(small_data: SmallData, folder: Path, *arguments: str) -> Path:
    """Trains one run with seed 43 in this process and returns its shard."""
    command = [
        "fit",
        *small_data.arguments,
        "--experiment.output_dir",
        str(folder),
        "--experiment.seeds",
        "43",
    ]
    command += ["--launch.threads_per_run", "1", "--trainer.enable_progress_bar", "false", *arguments]
    assert main(command) == 0
    return folder / "flannel" / "run_0" / "recording.safetensors"


GRID = [
    pytest.param(
        {"batch_size": batch, "max_seq_len": seq, "n_layer": layers}, id=f"B{batch}-T{seq}-L{layers}"
    )
    for batch in (1, 7)
    for seq in (16, 33)
    for layers in (1, 2, 3)
] + [
    pytest.param({"weight_decay": 0.1}, id="weight_decay"),
    pytest.param({"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}, id="adam"),
    pytest.param({"learning_rate": 0.03, "init_scale": 0.1}, id="rate-and-scale"),
    pytest.param({"max_steps": 1}, id="one-step"),
    pytest.param({"every_n_steps": 3}, id="every-third-step"),
]
GROUP = {"batch_size": "data", "max_steps": "trainer", "every_n_steps": "recorder"}


@pytest.mark.parametrize("settings", GRID)
def test_small_sizes_equal_the_notebook(
    small_data: SmallData, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"max_steps": 10, "max_seq_len": 16, "batch_size": 4, **settings}
    overrides = [f"--{GROUP.get(key, 'model')}.{key}={value}" for key, value in settings.items()]
    shard = small_fit(small_data, tmp_path, *overrides)
    tokens = load_corpus(
        corpus_path=small_data.corpus, tokenizer_path=small_data.tokenizer, vocab_size=SMALL_VOCAB_SIZE
    ).tokens
    expected = reference(
        tokens, seed=43, output_dir=tmp_path, vocab_size=SMALL_VOCAB_SIZE, hidden_dim=16, **settings
    )
    assert_same_bits(shard, expected)
    steps = expected["recorded_steps"].tolist()
    assert steps == list(range(0, settings["max_steps"] + 1, settings.get("every_n_steps", 1)))


def test_several_epochs_equal_the_notebook_in_every_tensor_but_its_miscounted_steps(
    small_data: SmallData, tmp_path: Path
) -> None:
    # The notebook's counter takes the end of an epoch for a step, which its 1000 steps never reach.
    tokens = load_corpus(
        corpus_path=small_data.corpus, tokenizer_path=small_data.tokenizer, vocab_size=SMALL_VOCAB_SIZE
    ).tokens
    num_windows = len(tokens) - 16
    batch_size = num_windows // 3 - 1  # four batches per epoch, the last one small
    overrides = ["--trainer.max_steps=10", f"--data.batch_size={batch_size}", "--model.n_layer=1"]
    overrides += ["--trainer.log_every_n_steps=1"]
    shard = small_fit(small_data, tmp_path, *overrides)
    expected = reference(
        tokens,
        seed=43,
        max_steps=10,
        batch_size=batch_size,
        n_layer=1,
        output_dir=tmp_path,
        vocab_size=SMALL_VOCAB_SIZE,
        hidden_dim=16,
        max_seq_len=16,
    )
    assert expected["recorded_steps"].tolist() != list(range(11))
    expected["recorded_steps"] = torch.arange(11)
    assert_same_bits(shard, expected)


@pytest.fixture(scope="module")
def builtin_tokens() -> np.ndarray[Any, Any]:
    return load_corpus(vocab_size=10_000).tokens


def test_two_concurrent_runs_at_the_notebooks_sizes_equal_the_notebook(
    builtin_tokens: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    command = ["fit", "--config", str(FLANNEL3), "--experiment.seeds", "42..43", "--trainer.max_steps", "12"]
    command += [
        "--trainer.accelerator",
        "cpu",
        "--launch.runs_per_device",
        "2",
        "--launch.threads_per_run",
        "1",
    ]
    assert main([*command, "--experiment.output_dir", str(tmp_path)]) == 0
    gathered = tmp_path / "flannel3" / "flannel3.safetensors"
    for run, seed in enumerate((42, 43)):
        expected = reference(builtin_tokens, seed=seed, max_steps=12, output_dir=tmp_path)
        assert expected["embeddings"].shape == (13, 10_000, 64)
        assert torch.isnan(expected["losses"][0])
        assert_same_bits(gathered, expected, prefix=f"run_{run}_")
    record = json.loads((tmp_path / "flannel3" / "experiment.json").read_text())
    assert [run["seed"] for run in record["runs"]] == [42, 43]


@pytest.mark.slow
def test_one_run_with_two_threads_at_the_notebooks_sizes_equals_the_notebook(
    builtin_tokens: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    command = ["fit", "--config", str(FLANNEL3), "--experiment.seeds", "44", "--trainer.max_steps", "25"]
    command += ["--trainer.accelerator", "cpu", "--launch.threads_per_run", "2"]
    assert main([*command, "--experiment.output_dir", str(tmp_path)]) == 0
    expected = reference(builtin_tokens, num_threads=2, seed=44, max_steps=25, output_dir=tmp_path)
    assert_same_bits(tmp_path / "flannel3" / "run_0" / "recording.safetensors", expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_one_run_on_cuda_equals_the_notebook_on_cuda(
    builtin_tokens: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    command = ["fit", "--config", str(FLANNEL3), "--experiment.seeds", "42", "--trainer.max_steps", "25"]
    assert main([*command, "--trainer.accelerator", "cuda", "--experiment.output_dir", str(tmp_path)]) == 0
    expected = reference(builtin_tokens, seed=42, max_steps=25, output_dir=tmp_path, device="cuda")
    assert_same_bits(tmp_path / "flannel3" / "run_0" / "recording.safetensors", expected)
