"""Quantities, models and names that nobody foresaw: right values, or a refusal that says whose doing."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import Column, HiddenMean, OptimizerState, Quantity, TokenProbability
from flannel_pl.quantities.naming import expand
from flannel_pl.recording.checking.verify import verify
from tests.quantities.own import Batches
from tests.quantities.test_built_in import Amsgrad, train
from tests.training.test_recorder import Bigram, fit


class Declares(Quantity):
    """Declares one column, and fills it with a number."""

    def __init__(self, **column: Any) -> None:
        self.column = {"name": "x", "dtype": torch.float32, **column}

    @override
    def columns(self, subject: Any) -> Any:
        return [Column(**self.column)]

    @override
    def after_step(self, row: Any, step: Any) -> None:
        row[self.column["name"]] = 1


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        *(
            ({"name": name}, "a name that files cannot have, or use for something else")
            for name in (
                "checksums",
                "recorded_tokens",
                "skipped",
                "",
                "a\nb",
                "\ud800",
                "run_1_x",
                "unused/0",
            )
        ),
        *(({"name": name}, "a name that files cannot have") for name in ("__metadata__", "unused/0")),
        (
            {"dims": "V", "like": torch.empty(12)},
            "x of shape .12,. with the axes 'V', expected a name for each",
        ),
        ({"dims": ("V",), "like": torch.empty(0)}, "of size 1 or more"),
        ({"dtype": torch.int64}, "x of type torch.int64 with row0 'nan', which that type has not"),
        ({"dtype": torch.bool}, "x of type torch.bool with row0 'nan'"),
        ({"dtype": torch.complex64}, "x of type torch.complex64, expected one of"),
        ({"row0": "odd"}, "x with row0 'odd', expected 'initial', 'zero' or 'nan'"),
        ({"taken": "odd"}, "x as taken 'odd', expected"),
        ({"labels": {"D": ("a",)}}, "x with .'D': 1. labels, expected as many as its axes have places"),
    ],
)
def test_what_no_file_can_have_is_refused_at_the_start(
    tmp_path: Path, column: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=f"Declares declares .*{sentence}"):
        train(tmp_path, [Declares(**column)])
    assert not list(tmp_path.glob("recording*"))


def test_int32_and_a_plain_number(tmp_path: Path) -> None:
    train(tmp_path, [Declares(dtype=torch.int32, row0="zero")])
    assert verify(tmp_path).ok
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).x[:].tolist() == [0, 1, 1, 1, 1, 1, 1]


class Reassigned(Bigram):
    """Puts a new object in a buffer's place at every step."""

    ema: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema", torch.zeros(()))
        self.truth: list[float] = [0.0]

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.ema = 0.5 * self.ema + 1
        self.truth.append(self.ema.item())
        return super().training_step(batch, batch_idx)


def test_a_buffer_that_is_another_object_at_every_step(tmp_path: Path) -> None:
    module = Reassigned()
    recorder = StepRecorder(tmp_path, "table.weight", parameters={"e": "ema"})
    fit(recorder, steps=4, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).tensor("e/values")[:].tolist() == module.truth


class InPlace(Amsgrad):
    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        hidden_BD = self.norm(self.table(tokens_B))
        hidden_BD.add_(100)
        logits_BV: Tensor = self.head(hidden_BD)
        return logits_BV


def test_an_output_that_is_changed_in_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="what norm gave was changed in place before a quantity could look"):
        train(tmp_path, [HiddenMean()], module=InPlace())


class Twice(Amsgrad):
    seen: ClassVar[list[Tensor]] = []

    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        first, second = (self.norm(self.table(tokens)) for tokens in (tokens_B, tokens_B.flip(0)[:2]))
        if self.training:
            self.seen.append(torch.cat([first, second]).detach())
        logits_BV: Tensor = self.head(first + second.sum(dim=0))
        return logits_BV


def test_a_module_that_is_called_twice(tmp_path: Path) -> None:
    Twice.seen.clear()
    train(tmp_path, [HiddenMean()], module=Twice())
    with flannel_pl.open_recording(tmp_path) as recording:
        for row, hidden in enumerate(Twice.seen, start=1):
            expected = hidden.double().mean(dim=0).numpy()
            np.testing.assert_allclose(recording.run(0).hidden_mean[row], expected, rtol=1e-5, atol=1e-7)


def test_a_training_step_of_the_objects_own_stays(tmp_path: Path) -> None:
    module: Any = Amsgrad()
    calls: list[int] = []
    original = module.training_step

    def own(batch: Tensor, batch_idx: int) -> Any:
        calls.append(batch_idx)
        return original(batch, batch_idx)

    module.training_step, module.publish = own, None
    train(tmp_path, [TokenProbability(of=None)], module=module)
    assert module.training_step is own
    assert vars(module)["publish"] is None
    assert len(calls) == 6


@pytest.mark.parametrize("key", ["exp_avg_sqr", "nonsense"])
def test_what_the_optimizer_never_keeps_is_refused(tmp_path: Path, key: str) -> None:
    said = f"AdamW keeps no '{key}' of table.weight, for 'mine'; it keeps: exp_avg, exp_avg_sq"
    with pytest.raises(UserError, match=said):
        train(tmp_path, [OptimizerState(key, "mine")])


class LeavesOut(Bigram):
    """Leaves every second step out."""

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if batch_idx % 2:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class Moments(Quantity):
    every_step = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    @override
    def columns(self, subject: Any) -> Any:
        return [Column("num", dtype=torch.int64, row0="zero")]

    @override
    def before_step(self, row: Any, step: Any) -> None:
        self.calls.append(("before", step.number))

    @override
    def after_step(self, row: Any, step: Any) -> None:
        self.calls.append(("after", step.number))
        row["num"] = len(self.calls)


@pytest.mark.parametrize("every_n_steps", [1, 2, 3])
def test_every_step_has_both_moments(tmp_path: Path, every_n_steps: int) -> None:
    moments = Moments()
    recorder = StepRecorder(tmp_path, "table.weight", quantities=[moments], every_n_steps=every_n_steps)
    fit(recorder, steps=6, module=LeavesOut())
    assert moments.calls == [(name, step) for step in range(1, 7) for name in ("before", "after")]


def test_aliases() -> None:
    net: Any = nn.Module()
    net.norm, net.extra = nn.LayerNorm(3), nn.Parameter(torch.zeros(2))
    mine = {"gain": "norm.weight"}
    expected = {"gain": "norm.weight", "extra": "extra", "norm.bias": "norm.bias"}
    assert expand(net, {**mine, "x": "all"}) == expand(net, {"x": "all", **mine}) == expected
    for wanted, sentence in (
        ({"a": "extra", "b": "extra"}, "has 'a' and 'b' for extra; name it once"),
        (
            {"x": "norm.*", "norm.weight": "extra"},
            "calls extra 'norm.weight', which is the name of another one",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            expand(net, wanted)


class Broken(Declares):
    @override
    def after_step(self, row: Any, step: Any) -> None:
        raise ValueError("mine")


class Wants(Declares):
    outputs_of = ("norm", "nope")


def test_whose_error_it_is(tmp_path: Path) -> None:
    sentence = (
        r"the quantity tests\S+\.Broken failed with ValueError: mine \(.*test_foreign_code.py, line \d+\)"
    )
    with pytest.raises(UserError, match=sentence):
        train(tmp_path / "x", [Broken()])
    module = Amsgrad()
    with pytest.raises(
        UserError, match="Amsgrad has no module nope whose output a quantity wants; it has table"
    ):
        train(tmp_path / "y", [Wants()], module=module)
    assert not module.norm._forward_hooks


class Saves(Callback):
    """Makes a checkpoint before it is the recorder's turn."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @override
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_that_lacks_the_steps_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "their.ckpt"
    recorder = StepRecorder(tmp_path / "x", "table.weight", quantities=[Batches()], checkpoint_every=2)

    class Ends(Bigram):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            if batch_idx == 5:
                raise RuntimeError("enough")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="enough"):
        fit(recorder, steps=8, module=Ends(), callbacks=(Saves(path),))
    recorder = StepRecorder(tmp_path / "x", "table.weight", quantities=[Batches()], checkpoint_every=2)
    with pytest.raises(UserError, match="checkpoint of step 4 has what quantities remember of step 3"):
        fit(recorder, steps=8, ckpt_path=path)
