"""A loop with what loops have: other optimizers, scalers, types, folders; and what is refused before it."""

import os
import re
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from typing_extensions import override

import flannel_pl
from flannel_pl import Recorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import Column, Quantity
from tests.adapters.plain import TABLE, Bigrams, Counts, loss_of, record, sgd, windows
from tests.adapters.test_three_trainers import columns_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1024.0, 1000.0])
def test_an_unscaled_gradient_is_the_scalers_own(tmp_path: Path, dtype: torch.dtype, scale: float) -> None:
    net, expected = Bigrams().to(dtype), []
    optimizer, scaler = sgd(net), torch.amp.GradScaler("cpu", init_scale=scale)
    with Recorder(tmp_path, net, optimizer, parameters=TABLE, scaler=scaler) as recorder:
        for window_BT in windows():
            optimizer.zero_grad()
            loss: Any = loss_of(net, window_BT)
            scaled: Any = scaler.scale(loss)
            scaled.backward()
            recorder.before_step()
            scaler.unscale_(optimizer)
            assert net.table.weight.grad is not None
            expected.append(net.table.weight.grad.numpy().copy())
            scaler.step(optimizer)
            scaler.update()
            recorder.after_step(loss=loss)
    assert columns_of(tmp_path)["grads"][1:].tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("overflows", [False, True])
def test_a_parameter_that_comes_to_another_optimizer_with_a_scaler(tmp_path: Path, overflows: bool) -> None:
    net = Bigrams()
    net.head.weight.requires_grad_(False)
    first, second = (torch.optim.AdamW([one], lr=0.1) for one in (net.table.weight, net.head.bias))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127 if overflows else 2.0**10, growth_interval=100)
    expected: list[dict[str, np.ndarray]] = []
    with Recorder(
        tmp_path, net, [first, second], parameters={"head": "head.weight", **TABLE}, scaler=scaler
    ) as recorder:
        for number, window_BT in enumerate(windows(8)):
            if number == 1:  # the second step, which is left out if the first one was
                net.head.weight.requires_grad_(True)
                second.add_param_group({"params": [net.head.weight]})
            scaled: Any = scaler.scale(4 * loss_of(net, window_BT))
            scaled.backward()
            recorder.before_step()
            scale = scaler.get_scale()
            grads = {
                name: np.zeros_like(one.detach().numpy()) if one.grad is None else one.grad.numpy() / scale
                for name, one in net.named_parameters()
            }
            for one in (first, second):
                scaler.step(one)
            scaler.update()
            recorder.after_step(loss=torch.zeros(()))
            moments = {
                name: optimizer.state[one]["exp_avg"].numpy().copy()
                if one in optimizer.state
                else np.zeros_like(one.detach().numpy())
                for name, one, optimizer in (
                    ("head.weight", net.head.weight, second),
                    ("table.weight", net.table.weight, first),
                )
            }
            expected.append({"head": grads["head.weight"], "E": grads["table.weight"], **moments})
            for one in (first, second):
                one.zero_grad()
    columns = columns_of(tmp_path)
    assert columns["skipped"].any() == overflows
    for row, values in enumerate(expected, start=1):
        for prefix, alias, name in (("", "head", "head.weight"), ("E/", "E", "table.weight")):
            assert columns[f"{prefix}momentum"][row].tobytes() == values[name].tobytes(), (row, name)
            assert np.array_equal(columns[f"{prefix}grads"][row], values[alias], equal_nan=True), (row, name)
    assert columns["momentum"][4:].any()


def test_a_mean_of_losses_in_bfloat16_is_one_in_float32(tmp_path: Path) -> None:
    net = Bigrams()
    optimizer = sgd(net)
    losses = torch.tensor([5.01, 5.02, 5.03, 5.04, 5.05, 5.06, 5.07, 5.11]).bfloat16()
    with Recorder(tmp_path, net, optimizer, parameters=TABLE) as recorder:
        backward(net)
        for loss in losses:
            recorder.forward(loss=loss)
        recorder.before_step()
        optimizer.step()
        recorder.after_step()
    assert columns_of(tmp_path)["losses_f32"][1] == np.float32(losses.double().mean())


def test_an_optimizer_that_accelerate_has_wrapped(tmp_path: Path) -> None:
    record(tmp_path / "plain", *of_momentum())
    net, optimizer = accelerate.Accelerator(cpu=True).prepare(*of_momentum())
    record(tmp_path / "wrapped", net, optimizer)
    found, expected = columns_of(tmp_path / "wrapped"), columns_of(tmp_path / "plain")
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def backward(net: Bigrams) -> None:
    loss: Any = loss_of(net, windows()[0])
    loss.backward()


def of_momentum(**options: Any) -> tuple[Bigrams, torch.optim.Optimizer]:
    net = Bigrams(**options)
    return net, sgd(net, momentum=0.9)


def test_an_optimizer_that_fabric_has_wrapped(tmp_path: Path) -> None:
    record(tmp_path / "plain", *of_momentum())
    fabric = Fabric(accelerator="cpu", devices=1)
    net, optimizer = fabric.setup(*of_momentum())
    record(tmp_path / "wrapped", net, optimizer)
    found, expected = columns_of(tmp_path / "wrapped"), columns_of(tmp_path / "plain")
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


class Around(torch.optim.Optimizer):
    """Steps another one, and keeps something of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.optimizer, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one]["slow"] = one.detach() * 2


def test_an_optimizer_around_another_has_its_own_state(tmp_path: Path) -> None:
    net, optimizer = of_momentum()
    record(tmp_path, net, Around(optimizer))
    columns = columns_of(tmp_path)
    assert "momentum_buffer" not in columns
    assert np.array_equal(columns["slow"][1:], 2 * columns["embeddings"][1:])


class Foreign(torch.optim.Optimizer):
    """Steps another one, and is made without torch's own beginning."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state
        self.zero_grad = inner.zero_grad  # type: ignore[method-assign]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


def test_an_optimizer_that_does_not_tell_when_it_steps(tmp_path: Path) -> None:
    record(tmp_path / "plain", *of_momentum())
    net, optimizer = of_momentum()
    record(tmp_path / "foreign", net, Foreign(optimizer))
    found, expected = columns_of(tmp_path / "foreign"), columns_of(tmp_path / "plain")
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    with pytest.raises(UserError, match=r"Foreign does not tell when it steps, .* which steps are left out"):
        record(tmp_path / "scaled", net, Foreign(optimizer), scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("which", [0, 1])
def test_another_optimizer_in_the_place_of_one_is_refused(tmp_path: Path, which: int) -> None:
    net = Bigrams()
    several: list[Any] = [
        torch.optim.SGD([net.table.weight], lr=0.1),
        torch.optim.SGD([net.head.weight], lr=0.1),
    ]

    def swap(step: int) -> None:
        if step == 2:
            several[which] = torch.optim.Adam(several[which].param_groups[0]["params"])

    with pytest.raises(UserError, match=r"the step was made by another Adam than the recorder was given"):
        record(tmp_path, net, several, before=swap)
    with flannel_pl.open_recording(tmp_path, unfinished=True) as recording:
        assert recording.run(0).num_rows == 3


def test_sparse_gradients_have_a_sparse_momentum(tmp_path: Path) -> None:
    net, optimizer = of_momentum(sparse=True)
    optimizer = torch.optim.SGD([net.table.weight], lr=0.1, momentum=0.9)
    record(tmp_path, net, [optimizer, sgd(net.head)])
    columns, momentum = columns_of(tmp_path), np.zeros((12, 4))
    for row in range(1, 5):
        momentum = columns["grads"][row] + 0.9 * momentum
        np.testing.assert_allclose(columns["momentum_buffer"][row], momentum, rtol=1e-5, atol=1e-7)


def test_a_loop_may_go_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    record(Path("rel"), Bigrams(), before=lambda step: os.chdir(tmp_path / "elsewhere"))
    assert columns_of(tmp_path / "rel")["losses"].shape == (5,)
    assert not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.parametrize("wrong", [{"tokens": "ded"}, {"tensors": ["variance"]}, {"steps": 0}])
def test_what_cannot_be_recorded_overwrites_nothing(tmp_path: Path, wrong: Any) -> None:
    record(tmp_path, Bigrams())
    before = (tmp_path / "recording.safetensors").read_bytes()
    with pytest.raises(UserError):
        record(tmp_path, Bigrams(), overwrite=True, **wrong)
    assert (tmp_path / "recording.safetensors").read_bytes() == before
    record(tmp_path, Bigrams(), overwrite=True, number=2)
    assert columns_of(tmp_path)["losses"].shape == (3,)


def test_a_finished_recording_is_not_gone_on_with(tmp_path: Path) -> None:
    record(tmp_path, Bigrams())
    net = Bigrams()
    recorder = Recorder(tmp_path, net, sgd(net), parameters=TABLE, overwrite=True)
    recorder.load_state_dict({"step": 2})
    with pytest.raises(UserError, match=r"is finished, so that training cannot go on with it after step 2"):
        recorder.__enter__()
    assert columns_of(tmp_path)["losses"].shape == (5,)


def test_no_more_steps_than_were_announced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has places for 7 steps, because as many were .* this is step 8;"):
        record(tmp_path, Bigrams(), number=8, steps=7, every_n_steps=3)


def test_a_recorder_is_entered_once_and_again_after_an_error(tmp_path: Path) -> None:
    net = Bigrams()
    optimizer = sgd(net)
    recorder = Recorder(tmp_path, net, optimizer, parameters=TABLE)
    recorder.__enter__()
    backward(net)
    recorder.before_step()
    recorder.__exit__(ArithmeticError, ArithmeticError(), None)
    with recorder:
        for window_BT in windows():
            optimizer.zero_grad()
            loss: Any = loss_of(net, window_BT)
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.after_step(loss=loss)
            with pytest.raises(UserError, match=r"records already; leave its block before it is entered"):
                recorder.__enter__()
    assert columns_of(tmp_path)["losses"].shape == (5,)


def test_a_checkpoint_without_what_quantities_remember_is_refused(tmp_path: Path) -> None:
    net = Bigrams()
    recorder = Recorder(tmp_path, net, sgd(net), parameters=TABLE, quantities=[Counts()])
    with pytest.raises(UserError, match=r"checkpoint of step 3 has nothing of what quantities remember"):
        recorder.load_state_dict({"step": 3})
    with pytest.raises(UserError, match=r"given a state of net, expected what its state_dict had returned"):
        recorder.load_state_dict({"net": {}})


@pytest.mark.parametrize("ids", [[1, 4], torch.tensor([4, 1]), np.array([1, 4], dtype=np.uint8), (4, 1, 4)])
def test_token_ids_may_be_a_list(tmp_path: Path, ids: Any) -> None:
    record(tmp_path, Bigrams(), tokens="dead", token_sets={"dead": ids})
    assert columns_of(tmp_path)["recorded_tokens"].tolist() == [1, 4]


class Normed(Bigrams):
    """With a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parameters": ["table.weight"]}, r"parameters is \['table.weight'\], expected an alias for each"),
        (
            {"parameters": {"E": "running_mean"}},
            r"batch.running_mean is a buffer, which has neither gradient",
        ),
        ({"quantities": "HiddenMean"}, r"quantities has 'HiddenMean', expected objects"),
        (
            {"token_sets": {"dead": np.zeros(12, bool)}},
            r"'dead' has shape \(12,\) and type bool, .*; of a mask, give np\.flatnonzero",
        ),
        ({"token_sets": {"dead": [1.5]}}, r"'dead' has shape \(1,\) and type float32, expected a list of"),
        ({"token_sets": [1]}, r"token_sets is \[1\], expected a dict"),
        ({"steps": "5"}, r"steps is '5', expected a whole number"),
        ({"seed": 2**70}, r"seed is 1180591620717411303424, expected a number of at most 64 bits"),
        ({"token_sets": {"dead": "x"}}, r"the token set 'dead' is 'x', expected token ids"),
    ],
)
def test_wrong_arguments_are_told_at_once(tmp_path: Path, options: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        record(tmp_path / "a", Normed(), **options)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert not (tmp_path / "a" / "recording.partial").exists()


def test_a_seed_of_numpys(tmp_path: Path) -> None:
    record(tmp_path, Bigrams(), seed=np.int64(3), steps=np.int32(4))
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.seeds == (3,)


class Whole(Quantity):
    """Gives a column of whole numbers some value."""

    def __init__(self, dtype: torch.dtype, value: Any) -> None:
        self.dtype, self.value = dtype, value

    @override
    def columns(self, subject: Any) -> Any:
        return [Column("whole", dtype=self.dtype, row0="zero")]

    @override
    def after_step(self, row: Any, step: Any) -> None:
        row["whole"] = self.value


@pytest.mark.parametrize(
    ("dtype", "value", "sentence"),
    [
        (torch.int64, 2.7, r"whole is of type int64, and was given 2.7"),
        (torch.int64, torch.tensor(2.7), r"whole is of type int64, which does not hold the float32 that it"),
        (torch.int32, torch.tensor(2**40), r"whole is of type int32, which does not hold the int64 that it"),
        (torch.bool, torch.tensor(2), r"whole is of type bool, which does not hold the int64 that it was"),
        (torch.int64, torch.tensor(7, dtype=torch.uint8), None),
        (torch.int32, torch.tensor(True), None),
    ],
)
def test_whole_numbers_are_not_cut(tmp_path: Path, dtype: Any, value: Any, sentence: str | None) -> None:
    if sentence is not None:
        with pytest.raises(UserError, match=sentence):
            record(tmp_path, Bigrams(), quantities=[Whole(dtype, value)])
        return
    record(tmp_path, Bigrams(), quantities=[Whole(dtype, value)])
    assert columns_of(tmp_path)["whole"].tolist() == [0, *[int(value)] * 4]


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    net = Bigrams()
    with (
        pytest.raises(UserError, match=r"loss is 'low', expected a number or a tensor with one"),
        Recorder(tmp_path, net, sgd(net), parameters=TABLE) as recorder,
    ):
        recorder.forward(loss="low")  # type: ignore[arg-type]
