"""What an optimizer does in somebody's training is recorded as it is, or refused, and left as it is."""

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.errors import UserError
from tests.training.foreign_models import Case, Module
from tests.training.test_recorder import Bigram, fit


class Noisy(torch.optim.SGD):
    """Adds noise of its own to every step."""

    @override
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(1e-2 * np.random.randn() + 1e-2 * random.random())  # noqa: NPY002
        return loss


def test_an_optimizers_own_random_numbers_stay_what_they_were(tmp_path: Path) -> None:
    trained: list[Tensor] = []
    for first in (StepRecorder(tmp_path, "net.table.weight"), Callback()):
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        module: Any = Module(Case(optimizer=Noisy))
        fit(first, steps=3, module=module)  # type: ignore[arg-type]
        trained.append(module.net.table.weight.detach())
    assert torch.equal(*trained)


class Eager(Optimizer):
    """Makes what it keeps when it is made, as torch's Adagrad did once."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg"] = torch.full_like(parameter, 0.5)
            self.state[parameter]["rows"] = torch.zeros(parameter.shape[:1])

    @override
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                mean = self.state[parameter]["exp_avg"]
                if parameter.grad is not None:
                    mean.lerp_(parameter.grad, 0.1)
                    self.state[parameter]["rows"].add_(1)
                parameter.sub_(mean, alpha=self.param_groups[0]["lr"])
        return loss


def test_what_an_optimizer_makes_at_once_is_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensors has 'variance', but Eager keeps no 'exp_avg_sq'"):
        fit(
            StepRecorder(tmp_path / "x", "net.table.weight", tensors=["momentum", "variance"]),
            steps=3,
            module=Module(Case(optimizer=Eager)),
        )
    module: Any = Module(Case(optimizer=Eager))
    fit(StepRecorder(tmp_path / "y", "net.table.weight"), steps=3, module=module)
    with flannel_pl.open_recording(tmp_path / "y") as recording:
        run = recording.run(0)
        assert "variance" not in run.names
        kept = module.trainer.optimizers[0].state[module.net.table.weight]["exp_avg"]
        assert run.momentum[3].tobytes() == kept.numpy().tobytes()


class Counting(torch.optim.Adam):
    """Keeps books for all optimizers of its kind."""

    num_steps = 0
    rates: ClassVar[list[float]] = []
    by_name: ClassVar[dict[str, int]] = {}

    @override
    def step(self, closure: Any = None) -> Any:
        Counting.num_steps += 1
        self.rates.append(self.param_groups[0]["lr"])
        self.by_name["steps"] = Counting.num_steps
        Counting.latest = self.num_steps  # type: ignore[attr-defined]
        return super().step(closure)


def test_steps_that_a_class_counts_are_those_of_the_training(tmp_path: Path) -> None:
    rates = Counting.rates
    module = Module(Case(optimizer=Counting, options={"lr": 0.5}))
    fit(StepRecorder(tmp_path, "net.table.weight"), steps=3, module=module)
    assert Counting.rates is rates
    assert (Counting.num_steps, rates, Counting.by_name) == (3, [0.5, 0.25, 0.125], {"steps": 3})


@pytest.mark.parametrize("tensors", [("embeddings",), ("grads", "logits", "losses")])
def test_no_copy_takes_a_step_where_no_moments_are_recorded(tmp_path: Path, tensors: Any) -> None:
    said: list[str] = []

    class Talks(torch.optim.SGD):
        @override
        def step(self, closure: Any = None) -> Any:
            said.append("step")  # as good as a line in somebody's log
            return super().step(closure)

    fit(
        StepRecorder(tmp_path, "net.table.weight", tensors=tensors),
        steps=3,
        module=Module(Case(optimizer=Talks)),
    )
    assert said == ["step"] * 3


def test_nobody_is_told_of_a_step_that_is_none(tmp_path: Path) -> None:
    told: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: told.append(type(optimizer).__name__))
    try:
        fit(StepRecorder(tmp_path, "table.weight"), steps=3)
    finally:
        hook.remove()
    assert told == ["AdamW"] * 3


def test_a_rate_that_is_a_tensor_of_one_element(tmp_path: Path) -> None:
    module = Module(Case(options={"lr": torch.tensor([0.25])}))
    fit(StepRecorder(tmp_path, "net.table.weight"), steps=2, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).learning_rates[1:].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_rate_that_the_module_sets_just_before_the_step(tmp_path: Path, as_tensor: bool) -> None:
    class Warm(Bigram):
        @override
        def configure_optimizers(self) -> Any:
            rate: Any = torch.tensor(1.0) if as_tensor else 1.0
            return torch.optim.AdamW(self.parameters(), lr=rate, foreach=False)

        @override
        def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0 + 0.25 / (1 + self.trainer.global_step)

    fit(StepRecorder(tmp_path, "table.weight"), steps=2, module=Warm())
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).learning_rates[1:].tolist() == [0.25, 0.125]


def test_an_optimizer_that_is_replaced_is_refused(tmp_path: Path) -> None:
    class Replaces(Callback):
        @override
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.5)]

    with pytest.raises(UserError, match="the Trainer has another optimizer than when training started"):
        fit(StepRecorder(tmp_path, "table.weight"), steps=5, callbacks=(Replaces(),))
    assert not (tmp_path / "recording.safetensors").exists()


def test_moments_of_another_shape_are_refused(tmp_path: Path) -> None:
    class LowRank(torch.optim.AdamW):
        @override
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for state in self.state.values():
                state["exp_avg_sq"] = state["exp_avg_sq"][:4]
            return loss

    module = Module(Case(optimizer=LowRank))
    with pytest.raises(
        UserError, match=r"as 'exp_avg_sq' for net\.table\.weight has shape \(4, 4\), expected \(12, 4\)"
    ):
        fit(StepRecorder(tmp_path, "net.table.weight"), steps=1, module=module)


def test_all_moments_that_an_optimizer_never_keeps_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^tensors has 'momentum' and 'variance', but SGD keeps no 'exp_avg' and 'exp_avg_sq' for "
        r"table\.weight; leave them out of tensors$",
    ):
        fit(
            StepRecorder(tmp_path, "table.weight", tensors=["variance", "losses", "momentum"]),
            steps=1,
            module=Bigram(optimizer="SGD"),
        )


class Thaws(Bigram):
    """Its table is held by no optimizer until the second step."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.table.requires_grad_(requires_grad=False)

    @override
    def configure_optimizers(self) -> Any:
        return self.kind(self.head.parameters(), lr=0.1)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.table.requires_grad_(requires_grad=True)
            self.trainer.optimizers[0].add_param_group({"params": [self.table.weight]})


def test_moments_of_a_parameter_that_comes_to_the_optimizer_later(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=4, module=Thaws(torch.optim.AdamW))
    with flannel_pl.open_recording(tmp_path) as recording:
        for name in ("momentum", "variance"):
            there_R = [bool(np.any(row)) for row in recording.run(0).tensor(name)[:]]
            assert there_R == [False, False, False, True, True], name


def test_moments_that_it_will_have_none_of_then_are_refused_at_the_start(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path / "default", "table.weight"), steps=4, module=Thaws(torch.optim.SGD))
    with flannel_pl.open_recording(tmp_path / "default") as recording:
        assert not {"momentum", "variance"} & set(recording.run(0).names)
    with pytest.raises(
        UserError, match=r"tensors has 'variance', but Adamax keeps no 'exp_avg_sq' for table"
    ):
        fit(
            StepRecorder(tmp_path / "asked", "table.weight", tensors=["momentum", "variance"]),
            steps=4,
            module=Thaws(torch.optim.Adamax),
        )
    assert not (tmp_path / "asked" / "recording.partial").exists()
