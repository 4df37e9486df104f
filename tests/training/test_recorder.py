"""The recorder under a real Trainer, on a module that is no GPT-2; every row compared with a plain loop.

Shape suffixes: V vocabulary, D width, B batch.
"""

import errno
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.writing.journal import Journal

V, D, B = 12, 3, 4


class Bigram(LightningModule):
    """Predicts a token from the one before it; float32, so that recording in bfloat16 rounds."""

    def __init__(self, *, optimizer: str = "AdamW", returns_logits: bool = True) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(V, D)
        self.head = nn.Linear(D, V)
        self.optimizer_name, self.returns_logits = optimizer, returns_logits

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        logits_BV = self.head(self.table(batch[:, 0]))
        loss = nn.functional.cross_entropy(logits_BV, batch[:, 1])
        return {"loss": loss, "logits": logits_BV[0].detach()} if self.returns_logits else {"loss": loss}

    @override
    def configure_optimizers(self) -> Any:
        optimizer = getattr(torch.optim, self.optimizer_name)(self.parameters(), lr=0.1)
        halving = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": "step"}}


def batches(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(V, (B, 2), generator=generator) for _ in range(number)]


def fit(
    recorder: StepRecorder,
    *,
    steps: int,
    module: LightningModule | None = None,
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: Path | None = None,
    **settings: Any,
) -> None:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder, *callbacks],
        **{"gradient_clip_val": 0.01, "logger": False, **settings},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        warnings.filterwarnings("ignore", message=r".*your dataloader is not resumable")
        loader: Any = torch.utils.data.DataLoader(batches(64), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module or Bigram(), loader, ckpt_path=ckpt_path, weights_only=True)


def bits_of(folder: Path) -> dict[str, bytes]:
    """What was recorded, whenever and wherever that was."""
    with flannel_pl.open_recording(folder) as recording:
        run = recording.run(0)
        return {name: np.asarray(run.tensor(name)[:]).tobytes() for name in run.names}


def plain_loop(*, steps: int, accumulate: int = 1) -> Iterator[dict[str, Tensor]]:
    """What each row should hold, from a loop without Lightning."""
    module = Bigram()
    setup = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    weight, source = module.table.weight, iter(batches(64))
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = [module.training_step(next(source), 0) for _ in range(accumulate)]
        for output in outputs:
            (output["loss"] / accumulate).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        row = {"grads": weight.grad.clone(), "logits": outputs[0]["logits"]}
        row["losses_f32"] = sum((output["loss"].detach() / accumulate for output in outputs), torch.zeros(()))
        row["learning_rates"] = torch.tensor(optimizer.param_groups[0]["lr"])
        row["grad_norms"] = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        optimizer.step()
        scheduler.step()
        state = optimizer.state[weight]
        row["embeddings"], row["momentum"] = weight.detach().clone(), state["exp_avg"].clone()
        row["variance"] = state["exp_avg_sq"].clone()
        yield row


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_row_equals_a_plain_loops(tmp_path: Path, accumulate: int) -> None:
    dtypes = dict.fromkeys(("embeddings", "grads", "momentum", "variance", "logits"), "float32")
    recorder = StepRecorder(tmp_path, "table.weight", dtypes=dtypes)
    fit(recorder, steps=5, accumulate_grad_batches=accumulate)
    with flannel_pl.open_recording(tmp_path, framework="pt") as recording:
        run = recording.run(0)
        assert run.steps.tolist() == [0, 1, 2, 3, 4, 5]
        for t, expected in enumerate(plain_loop(steps=5, accumulate=accumulate), start=1):
            for name, tensor in expected.items():
                assert torch.equal(run.tensor(name)[t], tensor.to(torch.float32)), (name, t)
            assert run.losses[t] == expected["losses_f32"].bfloat16()
        assert torch.equal(run.embeddings[0], Bigram().table.weight.detach())
        for name in ("grads", "momentum", "variance", "logits"):
            assert not run.tensor(name)[0].any(), name
        for name in ("losses", "losses_f32", "learning_rates", "grad_norms"):
            assert torch.isnan(run.tensor(name)[0]), name
        # The recorded gradient is the one before clipping.
        assert run.grad_norms[1] > 0.1


def test_rows_are_rounded_if_that_is_asked_for_and_thinned_and_restricted(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("7\n2\n2\n")
    recorder = StepRecorder(
        tmp_path / "run",
        "table.weight",
        tensors=["embeddings", "logits"],
        dtypes={"embeddings": "bfloat16", "logits": "bfloat16"},
        tokens=str(tmp_path / "ids.txt"),
        every_n_steps=2,
    )
    fit(recorder, steps=5)
    with flannel_pl.open_recording(tmp_path / "run", framework="pt") as recording:
        run = recording.run(0)
        assert run.steps.tolist() == [0, 2, 4]
        assert run.tensor("recorded_tokens")[:].tolist() == [2, 7]
        expected = list(plain_loop(steps=5))
        assert torch.equal(run.embeddings[1], expected[1]["embeddings"][[2, 7]].bfloat16())
        assert torch.equal(run.logits[2], expected[3]["logits"][[2, 7]].bfloat16())
        assert "grads" not in run.names


def test_a_failing_disk_ends_training_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing_since = os.pwrite, list[int]()

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if seen.step >= 3:
            failing_since.append(seen.step)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, offset)

    def writing() -> bool:
        return any(thread.name == "flannel-writer" for thread in threading.enumerate())

    class Seen(Callback):
        step = 0

        @override
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.step = trainer.global_step
            # The writer gets its turn after every step.
            if failing_since or self.step >= 3:
                wait_for(lambda: bool(failing_since) and not writing())

    seen = Seen()
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(RunError, match=r"(recording\.partial|journal): Input/output error"):
        fit(StepRecorder(tmp_path, "table.weight"), steps=50, callbacks=(seen,))
    assert seen.step <= failing_since[0] + 2
    assert not (tmp_path / "recording.safetensors").exists()


def wait_for(condition: Any, *, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_rows_before_an_exception_are_kept_under_the_unfinished_name(tmp_path: Path) -> None:
    class Trip(Callback):
        @override
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                raise ZeroDivisionError("tripped")

    with pytest.raises(ZeroDivisionError):
        fit(StepRecorder(tmp_path, "table.weight"), steps=50, callbacks=(Trip(),))
    assert not (tmp_path / "recording.safetensors").exists()
    assert (tmp_path / "recording.partial").exists()
    entry = Journal(tmp_path / "journal").read()
    assert entry is not None
    assert (entry.state, entry.rows_committed, entry.num_rows) == ("failed", 5, 51)
    assert entry.message == "ZeroDivisionError: tripped"


def test_nan_losses_are_recorded_truthfully(tmp_path: Path) -> None:
    module = Bigram()
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert np.isnan(recording.run(0).losses_f32[:]).all()


def test_a_training_that_ends_early_has_the_rows_that_there_are(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=100, max_epochs=1)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert run.recorded_steps[:].tolist() == list(range(65))
        assert run.metadata["ended"] == {"step": 64, "planned_steps": 100, "reason": "max_epochs 1"}


REFUSED = [
    (
        {"parameter": "tabel.weight"},
        {},
        "no parameter 'tabel.weight' to record; it has head.bias, head.weight",
    ),
    (
        {"parameter": "head.bias", "tensors": ["logits"]},
        {},
        r"head.bias has shape \(12,\), expected two dimensions",
    ),
    ({"tokens": "dead"}, {}, "^tokens is 'dead', expected all or a text file"),
    (
        {"tensors": ["embeddings", "momentum"]},
        {"optimizer": "SGD"},
        "^tensors has 'momentum', but SGD keeps no 'exp_avg' for table.weight; leave it out of tensors",
    ),
    ({"tensors": ["variance"]}, {"optimizer": "Adamax"}, "but Adamax keeps no 'exp_avg_sq'"),
    (
        {"tensors": ["logits"]},
        {"returns_logits": False},
        "'logits', but training_step returned none; return ",
    ),
]


@pytest.mark.parametrize(("settings", "module", "message"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, settings: dict[str, Any], module: dict[str, Any], message: str
) -> None:
    recorder = StepRecorder(tmp_path / "run", **{"parameter": "table.weight", **settings})
    with pytest.raises(UserError, match=message):
        fit(recorder, steps=3, module=Bigram(**module))
    if "returned none" not in message:  # all else is seen before there is a file
        assert not (tmp_path / "run" / "recording.partial").exists()
    assert not (tmp_path / "run" / "recording.safetensors").exists()


def test_a_default_recording_needs_no_logits(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=Bigram(returns_logits=False))
    with flannel_pl.open_recording(tmp_path) as recording:
        assert "logits" not in recording.run(0).names
        assert recording.run(0).num_rows == 4


def test_a_finished_recording_is_never_overwritten(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=2)
    before = (tmp_path / "recording.safetensors").read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        fit(StepRecorder(tmp_path, "table.weight"), steps=2)
    assert (tmp_path / "recording.safetensors").read_bytes() == before


class Groups(Bigram):
    """The table is in the second group, and from step 3 on in a third."""

    @override
    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": [self.head.weight, self.head.bias]},
            {"params": [self.table.weight], "lr": 0.02},
        ]
        return torch.optim.AdamW(groups, lr=torch.tensor(0.1))

    @override
    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 2:
            optimizer: Any = self.optimizers()
            weight = optimizer.param_groups[1]["params"].pop()
            optimizer.add_param_group({"params": [weight], "lr": torch.tensor(0.03)})


def test_the_learning_rate_is_that_of_the_recorded_parameter(tmp_path: Path) -> None:
    for parameter, expected in (("table.weight", [0.02, 0.02, 0.03]), ("head.weight", [0.1] * 3)):
        fit(StepRecorder(tmp_path / parameter, parameter), steps=3, module=Groups())
        with flannel_pl.open_recording(tmp_path / parameter) as recording:
            rates = recording.run(0).learning_rates[1:]
            assert rates.tolist() == np.array(expected, np.float32).tolist()


class Untrained(Bigram):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.head.parameters(), lr=0.1)


def test_a_parameter_that_no_optimizer_holds_has_no_learning_rate(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight", tensors=["embeddings"]), steps=2, module=Untrained())
    with flannel_pl.open_recording(tmp_path) as recording:
        assert np.isnan(recording.run(0).learning_rates[:]).all()


def test_a_tied_parameter_can_be_named_by_either_name(tmp_path: Path) -> None:
    for name in ("table.weight", "head.weight"):
        module = Bigram()
        module.head.weight = module.table.weight
        fit(StepRecorder(tmp_path / name, name), steps=2, module=module)
    assert bits_of(tmp_path / "table.weight") == bits_of(tmp_path / "head.weight")
