"""On a CUDA device: the same rows whoever trains, those of a plain loop, without the host waiting for one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from flannel_pl import Recorder
from flannel_pl.quantities import (
    GradientNorms,
    HiddenMean,
    Quantity,
    TokenProbability,
    TopTokens,
    UpdateNorms,
)
from flannel_pl.recording.checking.verify import verify
from tests.adapters.plain import Bigrams, loss_of, sgd, windows
from tests.adapters.test_three_trainers import (
    assert_the_rows_are_a_plain_loops,
    assert_the_rows_are_the_same,
    columns_of,
)
from tests.adapters.three_trainers import CASES, RATE, Case, in_a_loop
from tests.on_cuda import DEVICE, MARKS, REHEARSES, NobodyWaits, repeatable
from tests.quantities.test_built_in import assert_every_row

__all__ = ["repeatable"]
pytestmark = [*MARKS, pytest.mark.usefixtures("repeatable")]


def fused(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=RATE, fused=True)


def capturable(net: nn.Module) -> torch.optim.Optimizer:
    """Counts its steps on the device."""
    return torch.optim.AdamW(net.parameters(), lr=torch.tensor(RATE, device=DEVICE), capturable=True)


HALF = {
    "float16": Case(half=True, steps=12),
    "float16, fused": Case(fused, half=True, steps=12),
    "float16, clipped": Case(half=True, steps=12, clip=0.05),
    "float16, accumulated, some tokens": Case(half=True, steps=12, accumulate=2, options={"tokens": "rare"}),
    "float16, all parameters, fused, every second step": Case(
        fused, half=True, steps=12, options={"parameters": "all", "every_n_steps": 2}
    ),
}
ON_DEVICE = {
    name: dataclasses.replace(case, device=DEVICE)
    for name, case in {**CASES, **HALF, **({} if REHEARSES else {"capturable": Case(capturable)})}.items()
}


@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_rows_are_the_same(tmp_path: Path, name: str) -> None:
    assert_the_rows_are_the_same(ON_DEVICE[name], tmp_path)


@pytest.mark.parametrize(
    "name",
    [name for name, case in ON_DEVICE.items() if not {"parameters", "every_n_steps"} & set(case.options)],
)
def test_they_are_those_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    assert_the_rows_are_a_plain_loops(ON_DEVICE[name], tmp_path)
    assert ON_DEVICE[name].half == bool(columns_of(tmp_path).get("skipped", np.zeros(1)).any())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_host_waits_for_no_row(tmp_path: Path, name: str) -> None:
    case = ON_DEVICE[name]
    quantities: list[Quantity] = [HiddenMean(of="norm"), GradientNorms(), UpdateNorms()]
    if case.options.get("parameters") != "all":
        quantities.append(TopTokens(k=3, of="norm"))
    case = dataclasses.replace(case, options={**case.options, "quantities": quantities})
    in_a_loop(case, tmp_path, NobodyWaits(but_for=case.accumulate + 2))
    assert verify(tmp_path).ok


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_built_in_quantity(tmp_path: Path, accumulate: int) -> None:
    assert_every_row(tmp_path, accumulate, 1, device=DEVICE)


def slow_copies() -> None:
    """Keeps the device busy for a while, so that copies to the host are late."""
    if not REHEARSES:
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]


TWO = {"E": "table.weight", "head": "head.weight"}


def busy_loop(folder: Path, *, late: bool) -> dict[str, Any]:
    net = Bigrams().to(DEVICE)
    optimizer = sgd(net, momentum=0.9)
    quantities: list[Quantity] = [HiddenMean(of="norm"), GradientNorms(), TokenProbability(of=None)]
    with Recorder(folder, net, optimizer, parameters=TWO, quantities=quantities) as recorder:
        for window_BT in windows(12).to(DEVICE):
            optimizer.zero_grad()
            loss: Any = loss_of(net, window_BT)
            if late:
                slow_copies()
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.after_step(loss=loss)
            if late:  # what was given to the row is changed at once
                with torch.no_grad():
                    for one in net.parameters():
                        one.mul_(1.0)
                        assert one.grad is not None
                        one.grad.fill_(7.0)
    return columns_of(folder)


def test_late_copies_are_of_their_own_step(tmp_path: Path) -> None:
    found, expected = busy_loop(tmp_path / "late", late=True), busy_loop(tmp_path / "calm", late=False)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.skipif(REHEARSES, reason="streams are CUDA's")
def test_a_loop_in_a_stream_of_its_own(tmp_path: Path) -> None:
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = busy_loop(tmp_path / "stream", late=True)
    expected = busy_loop(tmp_path / "calm", late=False)
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


class TwoPlaces(nn.Module):
    """Its table lives with the host, its head on the device."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 12).to(DEVICE)

    @override
    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(tokens_BT).to(DEVICE))
        return logits


@pytest.mark.parametrize("first", ["table.weight", "head.weight"])
def test_a_model_that_lives_in_two_places(tmp_path: Path, first: str) -> None:
    net = TwoPlaces()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, foreach=False)
    names = [first, *(name for name, _ in net.named_parameters() if name != first)]
    expected: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
    with Recorder(tmp_path, net, optimizer, parameters={name: name for name in names}) as recorder:
        for window_BT in windows(8):
            optimizer.zero_grad()
            logits = net(window_BT[:, :-1]).flatten(0, 1)
            loss: Any = nn.functional.cross_entropy(logits, window_BT[:, 1:].flatten().to(DEVICE))
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.after_step(loss=loss)
            for name in names:
                expected[name].append(net.get_parameter(name).detach().cpu().numpy().copy())
    columns = columns_of(tmp_path)
    for name in names:
        column = "embeddings" if name == first else f"{name}/values"
        assert np.array_equal(columns[column][1:], np.stack(expected[name])), name
    assert verify(tmp_path).ok


@pytest.mark.skipif(REHEARSES, reason="the host's memory is not counted")
def test_memory_of_the_device_does_not_grow(tmp_path: Path) -> None:
    net = Bigrams().to(DEVICE)
    optimizer = sgd(net)
    at_step: list[int] = []
    with Recorder(tmp_path, net, optimizer, parameters="all") as recorder:
        for window_BT in windows(300).to(DEVICE):
            optimizer.zero_grad()
            loss: Any = loss_of(net, window_BT)
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.after_step(loss=loss)
            at_step.append(torch.cuda.memory_allocated())
    assert max(at_step[200:]) <= max(at_step[10:50])


@pytest.mark.filterwarnings("ignore")  # what compilers say
@pytest.mark.skipif(REHEARSES, reason="slow to compile for the CPU")
def test_a_compiled_model(tmp_path: Path) -> None:
    net = Bigrams().to(DEVICE)
    compiled: Any = torch.compile(net)
    optimizer = sgd(net)
    expected = []
    with Recorder(tmp_path, compiled, optimizer, parameters={"E": "table.weight"}) as recorder:
        for window_BT in windows(4).to(DEVICE):
            optimizer.zero_grad()
            loss: Any = loss_of(compiled, window_BT)
            loss.backward()
            assert net.table.weight.grad is not None
            recorder.before_step()
            expected.append(net.table.weight.grad.cpu().numpy().copy())
            optimizer.step()
            recorder.after_step(loss=loss)
    assert np.array_equal(columns_of(tmp_path)["grads"][1:], np.stack(expected))
