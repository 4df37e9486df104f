"""Steps that no optimizer took: marked as such, with what there was, and compared with a plain loop.

A loss scaler for the CPU does what one does under 16-mixed on a GPU.

Shape suffixes: V vocabulary, D width.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.amp import GradScaler
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder, compare
from flannel_pl.errors import Interrupted, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.quantities.core.optimizing import OptimizerWatch
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.info import describe_recording
from tests.training.test_recorder import Bigram, batches, fit

STEPS = 12
FLOAT32 = dict.fromkeys(("embeddings", "grads", "momentum", "variance", "logits"), "float32")


class Fused(Bigram):
    """Its optimizer takes the scale out of the gradient and leaves the step out by itself."""

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)
        halving = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": "step"}}


def scaler() -> GradScaler:
    """One that overflows for some steps, then grows until it overflows again."""
    return GradScaler("cpu", init_scale=2.0**20, growth_interval=2)


def scaled_fit(recorder: StepRecorder, *, module: Bigram | None = None, **settings: Any) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        fit(recorder, steps=STEPS, module=module, plugins=[plugin], **settings)


def plain_loop(
    module: Bigram, *, accumulate: int = 1, clip: float | None = 0.01
) -> Iterator[dict[str, Tensor]]:
    """What each row should hold, from a loop without Lightning; whether a step was taken, the scale tells."""
    setup: Any = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    weight, source, scale = module.table.weight, iter(batches(64)), scaler()
    is_fused = optimizer.defaults.get("fused")
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = []
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.half, cache_enabled=False):
                outputs.append(module.training_step(next(source), 0))
            scale.scale(outputs[-1]["loss"] / accumulate).backward()  # type: ignore[no-untyped-call]
        before = scale.get_scale()
        if not is_fused:
            scale.unscale_(optimizer)
        factor = before if is_fused else 1.0
        assert weight.grad is not None
        row = {"grads": weight.grad / factor, "logits": outputs[0]["logits"]}
        row["losses_f32"] = sum((o["loss"].detach() / accumulate for o in outputs), torch.zeros(()))
        row["learning_rates"] = torch.tensor(optimizer.param_groups[0]["lr"])
        gradients = [p.grad / factor for p in module.parameters() if p.grad is not None]
        row["grad_norms"] = torch.nn.utils.get_total_norm(gradients)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        scale.step(optimizer)
        scale.update()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
        row["skipped"] = torch.tensor(scale.get_scale() < before)
        state = optimizer.state.get(weight, {})
        row["embeddings"] = weight.detach().clone()
        for name, key in (("momentum", "exp_avg"), ("variance", "exp_avg_sq")):
            row[name] = state[key].clone() if key in state else torch.zeros_like(weight)
        yield row


def assert_same(got: Tensor, expected: Tensor, where: object) -> None:
    same = (got == expected.to(got.dtype)) | (got.isnan() & expected.isnan())
    assert same.all(), where


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", ["AdamW", "fused"])
def test_every_row_equals_a_plain_loops(tmp_path: Path, accumulate: int, optimizer: str) -> None:
    kind, clip = (Bigram, 0.01) if optimizer == "AdamW" else (Fused, None)
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    scaled_fit(StepRecorder(tmp_path, "table.weight", dtypes=FLOAT32), module=kind(), **settings)
    with flannel_pl.open_recording(tmp_path, framework="pt") as recording:
        run = recording.run(0)
        marks = run.tensor("skipped")[:].tolist()
        assert marks[:2] == [False, True]  # row 0, which is no step, and the first step
        assert 3 <= sum(marks) <= STEPS - 3
        assert not all(marks[1:][marks[1:].index(False) :])
        for t, expected in enumerate(plain_loop(kind(), accumulate=accumulate, clip=clip), start=1):
            for name, tensor in expected.items():
                assert_same(run.tensor(name)[t], tensor, (name, t))
            assert expected["skipped"].item() == (not torch.isfinite(run.grad_norms[t])), t
        first = marks.index(True)
        assert torch.equal(run.embeddings[first], run.embeddings[0])
        assert not run.momentum[first].any()
    assert verify(tmp_path).ok


def test_info_counts_them_and_the_same_rows_compare_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scaled_fit(StepRecorder(tmp_path / name, "table.weight"))
    with flannel_pl.open_recording(tmp_path / "a") as recording:
        number = np.count_nonzero(recording.run(0).tensor("skipped")[:])
    assert f"13 rows (steps 0 to 12, {number} skipped by the optimizer)" in describe_recording(tmp_path / "a")
    assert compare(tmp_path / "a", tmp_path / "b").equal
    fit(StepRecorder(tmp_path / "c", "table.weight"), steps=STEPS)
    assert not compare(tmp_path / "a", tmp_path / "c").equal


def test_thinned_rows_say_what_became_of_their_own_step(tmp_path: Path) -> None:
    scaled_fit(StepRecorder(tmp_path, "table.weight", every_n_steps=2, tokens="all"))
    expected = [row["skipped"].item() for row in plain_loop(Bigram())]
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).tensor("skipped")[:].tolist() == [False, *expected[1::2]]


def test_a_recording_without_a_scaler_has_no_such_column(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=2)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert "skipped" not in run.names
        assert run.metadata["checksum_columns"][-3:] == ["losses_f32", "learning_rates", "grad_norms"]


class LeavesOut(Bigram):
    """Takes every third step not at all, and every third without Lightning, which does not clip then."""

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if batch_idx % 3 == 0:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        optimizer_closure()
        if batch_idx % 3 == 2:
            optimizer.optimizer.step()


def test_steps_that_a_module_leaves_out_or_takes_by_itself(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight", dtypes=FLOAT32), steps=6, module=LeavesOut())
    module = LeavesOut()
    setup: Any = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    with flannel_pl.open_recording(tmp_path, framework="pt") as recording:
        run = recording.run(0)
        assert run.tensor("skipped")[:].tolist() == [False, False, True, False, False, True, False]
        for t, batch in enumerate(batches(6), start=1):
            optimizer.zero_grad()
            module.training_step(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]
            weight = module.table.weight
            assert weight.grad is not None
            assert_same(run.grads[t], weight.grad, t)
            rate = optimizer.param_groups[0]["lr"]
            assert_same(run.learning_rates[t], torch.tensor(rate), t)
            if t % 3 == 1:
                norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
                assert_same(run.grad_norms[t], norm, t)
            if t % 3 != 2:
                optimizer.step()
            scheduler.step()
            assert_same(run.embeddings[t], weight.detach(), t)
            assert_same(run.momentum[t], optimizer.state[weight]["exp_avg"], t)


def test_an_optimizer_that_never_has_such_a_state_is_refused_though_its_first_steps_are_skipped(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UserError, match=r"'momentum', but SGD keeps no 'exp_avg' for table\.weight; leave it out"
    ):
        scaled_fit(
            StepRecorder(tmp_path, "table.weight", tensors=["momentum"]), module=Bigram(optimizer="SGD")
        )


def test_the_rate_of_a_batch_stays_what_it_was_when_a_schedule_changes_it_in_place() -> None:
    module = Bigram()
    optimizer = torch.optim.AdamW(module.parameters(), lr=torch.tensor(0.5), foreach=False)
    watch = OptimizerWatch(module, [optimizer], module.table.weight)
    watch.begin_batch()
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert (float(watch.rate_of_batch), float(watch.rate)) == (0.5, 0.25)


def test_a_frozen_parameter_has_no_moments_yet(tmp_path: Path) -> None:
    module = Bigram()
    module.table.requires_grad_(requires_grad=False)
    fit(StepRecorder(tmp_path, "table.weight"), steps=2, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        for name in ("grads", "momentum", "variance"):
            assert not np.asarray(run.tensor(name)[:]).any()


def test_an_unfinished_recording_of_an_earlier_version_goes_on_without_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannel_pl.adapters.lightning.recorder.may_skip", lambda trainer, module: False)
    recorder = StepRecorder(tmp_path, "table.weight", checkpoint_every=4)
    recorder.stop_signal = 15
    with pytest.raises(Interrupted):
        scaled_fit(recorder)
    monkeypatch.undo()
    ((_, _, checkpoint),) = RunPaths(tmp_path).checkpoints()
    scaled_fit(StepRecorder(tmp_path, "table.weight", checkpoint_every=4), ckpt_path=checkpoint)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert "skipped" not in recording.run(0).names
        assert recording.run(0).num_rows == STEPS + 1
    assert verify(tmp_path).ok
