"""Optimizers and schedules by class: their runs have the bits of a plain loop that makes them itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_scheduler

import flannel_pl
from flannel_pl import FlannelData, TiedGPT2
from flannel_pl.__main__ import main
from flannel_pl.models.schedules import Schedule, rate_factor
from flannel_pl.recording.checking.verify import verify
from tests.conftest import SmallData

STEPS = 8


def words(verb: str, data: SmallData, folder: Path, *more: str) -> list[str]:
    command = [verb, *data.arguments, "--experiment.output_dir", str(folder), "--experiment.name", "x"]
    return [*command, "--trainer.max_steps", str(STEPS), "--launch.threads_per_run", "1", *more]


def settings(data: SmallData) -> dict[str, Any]:
    """Returns the config of the small data."""
    from flannel_pl.training.cli import resolve

    return resolve(data.arguments)


def loop(data: SmallData, make: Any, factor: Any) -> list[torch.Tensor]:
    """Returns the embedding after each step of a plain loop; only model and batches are ours."""
    config = settings(data)
    torch.set_num_threads(1)
    torch.manual_seed(42)
    model = TiedGPT2(**config["model"])
    sizes = {name: config["model"][name] for name in FlannelData.AS_THE_MODELS}
    batches = FlannelData(**{**config["data"], **sizes})
    batches.prepare_data()
    batches.setup("fit")
    model.configure_model()
    module: nn.Module = model.gpt2
    names = {name for name, one in module.named_parameters() if one.ndim < 2}
    optimizer = make(
        [one for name, one in module.named_parameters() if name not in names],
        [one for name, one in module.named_parameters() if name in names],
    )
    scheduler = factor(optimizer)
    W = model.gpt2.transformer.wte.weight
    found = [W.detach().clone()]
    for numbers in list(batches.train_dataloader())[:STEPS]:
        batch = batches.transfer_batch_to_device(numbers, torch.device("cpu"), 0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        found.append(W.detach().clone())
    return found


def sgd(decayed: list[Any], others: list[Any]) -> Any:
    groups: Any = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, 0.3, momentum=0.9, weight_decay=0.01)


def adafactor(decayed: list[Any], others: list[Any]) -> Any:
    groups: Any = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.Adafactor(groups, lr=0.1)


def linear(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)


def cosine(optimizer: Any) -> Any:
    return get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=STEPS)


def exponential(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.3"]
SGD += ["--model.optimizer.momentum", "0.9", "--model.optimizer.weight_decay", "0.01"]
CASES = {
    "sgd-constant": (
        [*SGD, "--model.lr_schedule", "constant"],
        sgd,
        lambda optimizer: get_scheduler("constant", optimizer),
    ),
    "sgd-cosine": ([*SGD, "--model.lr_schedule", "cosine", "--model.warmup_steps", "3"], sgd, cosine),
    "sgd-exponential": (
        [
            *SGD,
            "--model.lr_schedule",
            "torch.optim.lr_scheduler.ExponentialLR",
            "--model.lr_schedule.gamma",
            "0.5",
        ],
        sgd,
        exponential,
    ),
    "adafactor": (
        [
            "--model.optimizer",
            "torch.optim.Adafactor",
            "--model.optimizer.lr",
            "0.1",
            "--model.lr_schedule",
            "constant",
        ],
        adafactor,
        lambda optimizer: get_scheduler("constant", optimizer),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_bits_of_a_plain_loop(small_data: SmallData, tmp_path: Path, case: str) -> None:
    more, make, factor = CASES[case]
    more = [*more, "--trainer.gradient_clip_val", "1.0", "--trainer.precision", "bf16-mixed"]
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert verify(tmp_path / "x").ok
    expected = loop(small_data, make, factor)
    with flannel_pl.open_recording(tmp_path / "x", framework="torch") as recording:
        W = recording.run(0).embeddings[:]
        assert all(torch.equal(one, other) for one, other in zip(W, expected, strict=True))
        names = set(recording.run(0).names)
        assert ("momentum_buffer" in names) == case.startswith("sgd")
        assert {"momentum", "variance"} & names == set()
        assert np.isnan(recording.scalars["learning_rate"])


def test_the_state_of_our_own_is_recorded_in_its_type(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.optimizer", "flannel_pl.models.AdamW", "--model.optimizer.state_dtype", "float32"]
    more += ["--model.optimizer.rounding", "kahan", "--trainer.precision", "bf16-mixed"]
    assert main(words("plan", small_data, tmp_path, *more)) == 0
    line = "arithmetic  weights bfloat16, optimizer state bfloat16, float32, autocast bfloat16"
    assert line in capsys.readouterr().out
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    with flannel_pl.open_recording(tmp_path / "x", framework="torch") as recording:
        run = recording.run(0)
        assert run.embeddings[:].dtype == run.kahan[:].dtype == torch.bfloat16
        assert run.momentum[:].dtype == run.variance[:].dtype == torch.float32


@pytest.mark.parametrize("warmup_steps", [0, 3, 20])
@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear",) * 2, ("cosine",) * 2, ("constant", "constant_with_warmup")]
)
def test_rates_are_those_of_transformers(schedule: Schedule, theirs: str, warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup_steps, num_training_steps=10)
    factor = rate_factor(schedule, max_steps=10, warmup_steps=warmup_steps)
    for step in range(14):
        assert factor(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            [*SGD, "--model.learning_rate", "3e-4"],
            "model.learning_rate is 0.0003, but model.optimizer has its own",
        ),
        (
            ["--model.optimizer", "torch.optim.SDG"],
            "has no attribute 'SDG'; give the path to import a class from",
        ),
        (
            ["--model.lr_schedule", "wobbly"],
            "model.lr_schedule is wobbly, expected linear, constant, cosine or a",
        ),
        (["--model.head_init", "copy"], "model.head_init is copy, but the head is the embedding itself"),
        (["--model.ff_dim", "0"], "model.ff_dim is 0, expected at least 1"),
        (["--model.warmup_steps", "-1"], "model.warmup_steps is -1, expected 0 or more"),
        (["--model.weight_decay", "null"], "model.weight_decay is null, expected a number"),
    ],
)
def test_refusals(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(words("plan", small_data, tmp_path, *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_head_of_its_own_may_begin_as_the_embedding() -> None:
    sizes = {"vocab_size": 50, "hidden_dim": 8, "max_seq_len": 8, "tie_word_embeddings": False}
    for head_init in ("copy", "drawn"):
        model = TiedGPT2(**sizes, head_init=head_init, init_seed=1, ff_dim=12)  # type: ignore[arg-type]
        model.configure_model()
        E, W = model.gpt2.transformer.wte.weight, model.gpt2.lm_head.weight
        assert E is not W
        assert torch.equal(E, W) == (head_init == "copy")
        assert model.gpt2.transformer.h[0].mlp.c_fc.weight.shape == (8, 12)


OURS = ["--model.optimizer", "flannel_pl.models.AdamW", "--model.optimizer.state_dtype", "float32"]


@pytest.mark.parametrize(
    "more",
    [
        SGD,
        CASES["sgd-exponential"][0],
        CASES["adafactor"][0],
        [*OURS, "--model.optimizer.rounding", "stochastic", "--model.lr_schedule", "cosine"],
        [*OURS, "--model.optimizer.rounding", "kahan"],
        [*OURS, "--model.param_dtype", "bfloat16", "--model.optimizer.where", "step"],
    ],
    ids=["sgd", "exponential", "adafactor", "stochastic", "kahan", "step"],
)
def test_a_run_that_was_stopped_has_the_bits_of_one_that_was_not(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    command = words("fit", small_data, tmp_path, *more, "--launch.checkpoint_every", "3")
    command += ["--trainer.precision", "bf16-mixed"]
    step = TiedGPT2.training_step

    def stops(self: TiedGPT2, *batch: Any) -> Any:
        if self.trainer.global_step == 5:
            raise OSError("by hand")
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(TiedGPT2, "training_step", stops)
        assert main(command) == 1
    assert main(command) == 0
    assert main([*command, "--experiment.name", "whole"]) == 0
    with (
        flannel_pl.open_recording(tmp_path / "x") as stopped,
        flannel_pl.open_recording(tmp_path / "whole") as whole,
    ):
        assert len(stopped.run(0).attempts) == 2
        names = set(stopped.run(0).names) - {"checksums"}
        assert names == set(whole.run(0).names) - {"checksums"}
        for name in names:
            one, other = stopped.run(0).tensor(name)[:], whole.run(0).tensor(name)[:]
            assert one.tobytes() == other.tobytes(), name
