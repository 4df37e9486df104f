"""A plain loop: what it may forget, how long it may be, how it goes on, and what can be read meanwhile."""

import contextlib
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

import flannel_pl
from flannel_pl import Recorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import HiddenMean, OptimizerState
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.safetensors import sink
from flannel_pl.recording.info import describe_recording
from tests.adapters.test_three_trainers import columns_of
from tests.adapters.three_trainers import Case, Net, batches

E = {"E": "table.weight"}


def one_step(recorder: Recorder, net: Net, optimizer: Any, batch: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    loss = net(**batch)["loss"]
    loss.backward()
    recorder.before_step()
    optimizer.step()
    recorder.after_step(loss=loss)


def train(recorder: Recorder, net: Net, optimizer: Any, of: list[dict[str, Tensor]]) -> None:
    with recorder:
        for batch in of:
            one_step(recorder, net, optimizer, batch)


def setup(kind: Any = torch.optim.AdamW, **options: Any) -> tuple[Net, torch.optim.Optimizer]:
    net = Net()
    return net, kind(net.parameters(), **{"lr": 0.1, **options})


ALL = batches(Case(steps=8))


def test_two_lines_and_two_calls_are_enough(tmp_path: Path) -> None:
    net, optimizer = setup(torch.optim.SGD, momentum=0.9)
    train(Recorder(tmp_path, net, optimizer, parameters=E), net, optimizer, ALL)
    columns = columns_of(tmp_path)
    assert {"embeddings", "grads", "momentum_buffer", "losses_f32"} <= columns.keys()
    assert "logits" not in columns
    momentum = torch.zeros(12, 3)
    for row in range(1, 9):
        momentum = torch.from_numpy(columns["grads"][row]).clone() + (momentum * 0.9 if row > 1 else 0)
        assert torch.equal(torch.from_numpy(columns["momentum_buffer"][row]), momentum)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_length_that_nobody_knew_costs_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    if is_large:
        monkeypatch.setattr(sink, "MOST_COPIED_BYTES", 0)
    net, optimizer = setup()
    train(Recorder(tmp_path, net, optimizer, parameters=E, seed=7), net, optimizer, ALL)
    file = tmp_path / "recording.safetensors"
    there = file.stat()
    assert (there.st_size > 100 * 2**20) is is_large
    assert there.st_blocks * 512 < 2**20
    assert verify(tmp_path).ok
    with safe_open(file, framework="pt") as stock:
        assert stock.get_tensor("embeddings").shape == (9, 12, 3)
        assert stock.get_tensor("recorded_steps").tolist() == list(range(9))
        assert any(key.startswith("unused/") for key in stock.keys()) is is_large  # noqa: SIM118
    ended = {"step": 8, "planned_steps": None, "reason": "the loop ended"}
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.seeds == (7,)
        assert recording.run(0).metadata["ended"] == ended
        assert recording.num_bytes < 2**20
        assert not any(name.startswith("unused") for name in recording.run(0).names)
    words = "ended at step 8 (the loop ended), of a number that was not known before"
    assert words in describe_recording(tmp_path)


def test_a_loop_that_ends_early_says_so(tmp_path: Path) -> None:
    net, optimizer = setup()
    train(Recorder(tmp_path, net, optimizer, parameters=E, steps=20), net, optimizer, ALL)
    assert columns_of(tmp_path)["embeddings"].shape == (9, 12, 3)
    assert "ended early at step 8 of 20" in describe_recording(tmp_path)


def test_what_is_there_can_be_read_while_training_goes_on(tmp_path: Path) -> None:
    net, optimizer = setup()
    with Recorder(tmp_path, net, optimizer, parameters=E) as recorder:
        with pytest.raises(UserError, match="nothing is recorded yet: the first step tells"):
            recorder.open()
        for number, batch in enumerate(ALL, start=1):
            one_step(recorder, net, optimizer, batch)
            with recorder.open() as recording, flannel_pl.open_recording(tmp_path, unfinished=True) as other:
                assert recording.run(0).steps.tolist() == list(range(number + 1))
                assert np.array_equal(recording.run(0).embeddings[-1], net.table.weight.detach().numpy())
                assert other.run(0).num_rows == number + 1
                assert len(np.asarray(recording.run(0).losses_f32)) == number + 1
        with pytest.raises(UserError, match="is not finished"):
            flannel_pl.open_recording(tmp_path / "recording.partial")
    with recorder.open() as recording:
        assert recording.run(0).num_rows == 9


def trip(folder: Path, net: Net, optimizer: torch.optim.Optimizer) -> None:
    """Makes a checkpoint of its own after step 3, and breaks off after step 5."""
    recorder = Recorder(folder, net, optimizer, parameters=E)
    with contextlib.suppress(ArithmeticError), recorder:
        for number, batch in enumerate(ALL, start=1):
            one_step(recorder, net, optimizer, batch)
            if number == 3:
                state = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "recorder": recorder.state_dict()}, folder / "mine.pt")
            if number == 5:
                raise ArithmeticError("trip")
    assert (folder / "recording.partial").exists()


def test_it_goes_on_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    net, optimizer = setup()
    train(Recorder(tmp_path / "whole", net, optimizer, parameters=E), net, optimizer, ALL)
    net, optimizer = setup()
    trip(tmp_path / "cut", net, optimizer)
    state = torch.load(tmp_path / "cut" / "mine.pt")
    net, optimizer = setup()
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    recorder = Recorder(tmp_path / "cut", net, optimizer, parameters=E)
    recorder.load_state_dict(state["recorder"])
    train(recorder, net, optimizer, ALL[3:])
    whole, cut = columns_of(tmp_path / "whole"), columns_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(whole[name].tobytes() == cut[name].tobytes() for name in whole)


@pytest.mark.parametrize("begun", [None, 20, 8, 4])
def test_it_goes_on_with_as_many_steps_as_there_are_now(tmp_path: Path, begun: int | None) -> None:
    net, optimizer = setup()
    recorder = Recorder(tmp_path, net, optimizer, parameters=E, steps=begun)
    with contextlib.suppress(ArithmeticError), recorder:
        for batch in ALL[:3]:
            one_step(recorder, net, optimizer, batch)
        state = recorder.state_dict()
        raise ArithmeticError("trip")
    recorder = Recorder(tmp_path, net, optimizer, parameters=E, steps=8)
    recorder.load_state_dict(state)
    if begun == 4:
        with pytest.raises(
            UserError, match="begun with places for 4 steps, and now there are to be 8; go on w"
        ):
            recorder.__enter__()
        return
    train(recorder, net, optimizer, ALL[3:])
    assert verify(tmp_path).ok
    there = (tmp_path / "recording.safetensors").stat()
    assert there.st_blocks * 512 < 2**20
    assert columns_of(tmp_path)["embeddings"].shape == (9, 12, 3)
    words = "ended at step 8 (it was begun with places for more steps), of a number that was not known before"
    assert (words in describe_recording(tmp_path)) == (begun != 8)


def test_weights_of_another_training_are_no_going_on(tmp_path: Path) -> None:
    trip(tmp_path, *setup())
    net, optimizer = setup()
    recorder = Recorder(tmp_path, net, optimizer, parameters=E)
    recorder.load_state_dict(torch.load(tmp_path / "mine.pt")["recorder"])
    with pytest.raises(UserError, match=r"goes on after step 3 with another table\.weight than"):
        recorder.__enter__()
    with pytest.raises(UserError, match=r"go on with it \(load_state_dict with what state_dict had returned"):
        Recorder(tmp_path, net, optimizer, parameters=E).__enter__()


def test_an_earlier_one_is_replaced_only_if_that_is_said(tmp_path: Path) -> None:
    for _ in range(2):
        net, optimizer = setup()
        train(Recorder(tmp_path, net, optimizer, parameters=E, overwrite=True), net, optimizer, ALL)
    before = (tmp_path / "recording.safetensors").stat()
    net, optimizer = setup()
    with pytest.raises(UserError, match=r"never overwritten; .* or say overwrite=True$"):
        train(Recorder(tmp_path, net, optimizer, parameters=E), net, optimizer, ALL)
    assert (tmp_path / "recording.safetensors").stat() == before


def test_several_optimizers(tmp_path: Path) -> None:
    net = Net()
    matrices = [net.table.weight, net.head.weight]
    others = [one for one in net.parameters() if one.ndim == 1]
    both = [torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(others, lr=0.02)]
    with Recorder(tmp_path, net, both, parameters={"E": "table.weight", "bias": "head.bias"}) as recorder:
        for batch in ALL:
            loss = net(**batch)["loss"]
            for optimizer in both:
                optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
            recorder.before_step()
            for optimizer in both:
                optimizer.step()
            recorder.after_step(loss=loss)
    columns = columns_of(tmp_path)
    assert np.array_equal(columns["momentum_buffer"][-1], both[0].state[net.table.weight]["momentum_buffer"])
    assert np.array_equal(columns["bias/momentum"][-1], both[1].state[net.head.bias]["exp_avg"])
    assert not {"momentum", "bias/momentum_buffer"} & columns.keys()
    assert columns["learning_rates"][-1] == np.float32(0.1)
    assert columns["grad_norms"][-1] == pytest.approx(float(norm), rel=1e-6)


class Overflows(nn.Module):
    """Whose gradients are infinite in the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return (self.weight * (float("inf") if self.calls == 2 else 0.5)).sum()


@pytest.mark.parametrize("unscales", [True, False])
def test_a_loss_scaler_leaves_its_factor_out_and_marks_what_it_skips(tmp_path: Path, unscales: bool) -> None:
    net = Overflows()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recorder(tmp_path, net, optimizer, scaler=scaler) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss = net()
            scaler.scale(loss).backward()
            if unscales:
                scaler.unscale_(optimizer)
            recorder.before_step()
            scaler.step(optimizer)
            scaler.update()
            recorder.after_step(loss=loss)
    columns = columns_of(tmp_path)
    assert columns["skipped"].tolist() == [False, False, True, False]
    assert (columns["grads"][[1, 3]] == 0.5).all()
    assert np.isinf(columns["grads"][2]).all()
    assert np.array_equal(columns["embeddings"][1], columns["embeddings"][2])


def test_quantities_hear_passes_of_training_alone(tmp_path: Path) -> None:
    heard = []
    net, optimizer = setup()
    net.norm.register_forward_hook(lambda *called: heard.append(called[-1].detach().clone()))
    with Recorder(tmp_path, net, optimizer, parameters=E, quantities=[HiddenMean()]) as recorder:
        expected = []
        for batch, other in itertools.pairwise(ALL):
            net.eval()
            net(**other)
            net.train()
            with torch.no_grad():
                net(**other)
            heard.clear()
            one_step(recorder, net, optimizer, batch)
            expected.append(heard[0].double().flatten(0, 1).mean(dim=0))
    found = torch.from_numpy(columns_of(tmp_path)["hidden_mean"][1:])
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_size_that_only_a_value_tells(tmp_path: Path) -> None:
    class Positions(flannel_pl.quantities.Quantity):
        outputs_of = ("head",)

        def columns(self, subject: Any) -> Any:
            return [flannel_pl.quantities.Column("first", ("position", "V"), taken="forward")]

        def forward(self, values: Any, step: Any) -> None:
            values["first"] = step.outputs["head"][0][0].double()

    net, optimizer = setup()
    recorder = Recorder(tmp_path, net, optimizer, parameters=E, quantities=[Positions()], every_n_steps=2)
    train(recorder, net, optimizer, ALL)
    first = columns_of(tmp_path)["first"]
    assert first.shape == (5, 2, 12)
    assert first.dtype == np.float64
    net = Net()
    assert np.array_equal(first[1].astype(np.float32), first[1])
    assert verify(tmp_path).ok


@pytest.mark.parametrize("kind", ["without its state", "of a pattern", "frozen"])
def test_what_no_optimizer_holds_is_recorded_if_that_is_meant(tmp_path: Path, kind: str) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    options: dict[str, Any] = {"parameters": "all" if kind == "of a pattern" else E}
    if kind == "without its state":
        options["tensors"] = ["embeddings", "grads", "losses"]
    net.table.weight.requires_grad_(kind != "frozen")
    train(Recorder(tmp_path, net, optimizer, **options), net, optimizer, ALL)
    columns = columns_of(tmp_path)
    prefix = "table.weight/" if kind == "of a pattern" else ""
    values, grads = (columns[prefix + name] for name in ("values" if prefix else "embeddings", "grads"))
    assert (values == values[0]).all()
    assert (grads != 0).any() == (kind != "frozen")


def test_a_step_that_is_left_halfway_is_told_and_not_recorded(tmp_path: Path) -> None:
    def leave() -> None:
        net, optimizer = setup()
        with Recorder(tmp_path, net, optimizer, parameters=E, steps=20) as recorder:
            one_step(recorder, net, optimizer, ALL[0])
            net(**ALL[1])["loss"].backward()
            recorder.before_step()

    with pytest.warns(UserWarning, match="between before_step and after_step of step 2, which is not rec"):
        leave()
    assert columns_of(tmp_path)["embeddings"].shape == (2, 12, 3)
    words = "ended early at step 1 of 20 (the loop ended between before_step and after_step of step 2)"
    assert words in describe_recording(tmp_path)


class Plain(torch.optim.Optimizer):
    """Gradient descent that remembers the last gradient; its `step` takes nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for one in self.param_groups[0]["params"]:
            one -= 0.1 * one.grad
            self.state[one]["last"] = one.grad.clone()


def test_an_optimizer_whose_step_takes_nothing(tmp_path: Path) -> None:
    net = Net()
    optimizer = Plain(net.parameters())
    train(Recorder(tmp_path, net, optimizer, parameters=E), net, optimizer, ALL)
    columns = columns_of(tmp_path)
    assert np.array_equal(columns["last"][1:], columns["grads"][1:])
    assert columns["last"].any()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_parameter_that_comes_to_another_optimizer(tmp_path: Path, kind: Any) -> None:
    """One that keeps the same is as good; what another keeps has no place in the file."""
    net = Net()
    net.table.weight.requires_grad_(False)
    first = torch.optim.AdamW([net.head.weight], lr=0.1)
    second = kind([net.head.bias], lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    def train_both() -> None:
        with Recorder(tmp_path, net, [first, second], parameters="all") as recorder:
            for number, batch in enumerate(ALL, start=1):
                if number == 4:
                    net.table.weight.requires_grad_(True)
                    second.add_param_group({"params": [net.table.weight]})
                loss = net(**batch)["loss"]
                loss.backward()
                recorder.before_step()
                first.step()
                second.step()
                recorder.after_step(loss=loss)

    if kind is torch.optim.SGD:
        with pytest.raises(UserError, match=r"table\.weight was given to SGD while training went on, but"):
            train_both()
        return
    train_both()
    momentum = columns_of(tmp_path)["table.weight/momentum"]
    assert not momentum[:4].any()
    assert momentum[4].any()


PARTS: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "torch": (
        lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
        {"row_var": (12, 1), "col_var": (1, 3)},
    ),
    "transformers": (
        lambda parameters: transformers.Adafactor(  # type: ignore[no-untyped-call]
            parameters, lr=0.1, relative_step=False
        ),
        {"exp_avg_sq_row": (12,), "exp_avg_sq_col": (3,)},
    ),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("skips_first", [False, True])
def test_what_an_optimizer_keeps_of_some_axes(tmp_path: Path, kind: str, skips_first: bool) -> None:
    """Beside copies of the optimizer's state, taken in the same loop."""
    make, shapes = PARTS[kind]
    net = Net()
    optimizer = make(net.parameters())
    quantities = [OptimizerState(key, f"my_{key}") for key in shapes]
    expected: dict[str, list[Tensor]] = {key: [torch.zeros(shape)] for key, shape in shapes.items()}
    with Recorder(tmp_path, net, optimizer, parameters=E, quantities=quantities) as recorder:
        for number, batch in enumerate(ALL):
            optimizer.zero_grad()
            loss = net(**batch)["loss"]
            loss.backward()
            recorder.before_step()
            if number > 0 or not skips_first:
                optimizer.step()
            recorder.after_step(loss=loss)
            for key, shape in shapes.items():
                found = optimizer.state[net.table.weight].get(key)
                expected[key].append(torch.zeros(shape) if found is None else found.clone())
    columns = columns_of(tmp_path)
    for key, values in expected.items():
        assert np.array_equal(columns[f"my_{key}"], torch.stack(values).numpy())
        assert columns[f"my_{key}"].any()
    assert verify(tmp_path).ok


def test_the_default_device_is_not_where_rows_are_kept(tmp_path: Path) -> None:
    for folder, device in ((tmp_path / "a", "cpu"), (tmp_path / "b", "meta")):
        net, optimizer = setup(torch.optim.SGD, momentum=0.9)
        with torch.device(device):
            train(Recorder(folder, net, optimizer, parameters=E), net, optimizer, ALL)
    a, b = columns_of(tmp_path / "a"), columns_of(tmp_path / "b")
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def misused(kind: str, folder: Path) -> None:
    net, optimizer = setup()
    options: dict[str, Any] = {"parameters": E}
    if kind == "no parameter":
        options = {}
    if kind == "no optimizer":
        optimizer = torch.optim.AdamW  # type: ignore[assignment]
    if kind.startswith("of another model"):
        _, optimizer = setup()
        options["parameters"] = "all" if kind.endswith("all") else E
    if kind == "idle":
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    if kind == "several gradients":
        optimizer = torch.optim.LBFGS(net.parameters())
    if kind == "no steps":
        options["steps"] = 0
    if kind == "too long":
        options["steps"] = 2
    recorder = Recorder(folder, net, optimizer, **options)
    if kind == "no block":
        recorder.before_step()
    with recorder:
        if kind == "empty":
            return
        for batch in ALL:
            loss = net(**batch)["loss"]
            loss.backward()
            if kind != "no before":
                recorder.before_step()
            if kind == "before twice":
                recorder.before_step()
            optimizer.step()
            if kind == "twice told":
                recorder.forward(loss=loss)
            recorder.after_step(loss={"no loss": None, "complex": 1j}.get(kind, loss))
            if kind == "changes":
                nn.init.zeros_(net.table.weight)
            if kind == "loads late":
                recorder.load_state_dict({"step": 1})


@pytest.mark.parametrize(
    ("kind", "sentence"),
    {
        "no parameter": r"no parameter is named to record; the model has head.bias, .*. Name one or more",
        "no optimizer": r"optimizer is <class .*AdamW'>, expected one of torch's, or a list of them",
        "of another model": r"AdamW holds no parameter of Net, so it trains another model; make it from this",
        "of another model, all": r"AdamW holds no parameter of Net, so it trains another model; make it from",
        "idle": r"no optimizer of this training holds table.weight, which requires a gradient, so nothing wo",
        "several gradients": r"LBFGS evaluates the gradient several times per step, so there is no one grad",
        "no steps": r"steps is 0, expected at least 1, or None if nobody knows",
        "no block": r"this recorder does not record now; use it in a block: with Recorder",
        "empty": r"the block was left before its first step, so there is nothing to record",
        "no before": r"after_step is called without before_step, .* between loss.backward\(\) and opt",
        "before twice": r"before_step is called again before after_step; call each once in every step",
        "no loss": r"after_step was given no loss; say after_step\(loss=loss\)",
        "complex": r"the recorder was given a loss of type torch.complex64, expected a real number",
        "twice told": r"the step's loss was given to forward\(\) and to after_step\(\); give it to one",
        "too long": r"has places for 2 steps, because as many were announced, and this is step 3; ann",
        "changes": r"table.weight was changed after its row of step 1 .* change it before the recorder",
        "loads late": r"load_state_dict comes before the recording begins: before `with recorder:`",
    }.items(),
)
def test_misuse_is_told(tmp_path: Path, kind: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        misused(kind, tmp_path)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert not (tmp_path / "recording.safetensors").exists()
