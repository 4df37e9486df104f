"""Each arithmetic of `AdamW` beside something that shares no code with it: torch, optimi, torchao, numpy."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import optimi
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flannel_pl.errors import UserError
from flannel_pl.models.adamw import AdamW

Exact = Callable[[Tensor, Tensor, int, Tensor, Tensor, float], tuple[Any, Tensor, Tensor]]
Make = Callable[[Iterable[nn.Parameter]], Optimizer]
BF16, FP32 = torch.bfloat16, torch.float32


def gradients(steps: int, dtype: torch.dtype, *, seed: int = 0) -> list[Tensor]:
    """Rows whose gradients differ in size by three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (-3 * torch.rand(50, 1, generator=generator))
    return [(torch.randn(50, 8, generator=generator) * sizes).to(dtype) for _ in range(steps)]


def trained(make: Make, dtype: torch.dtype, *, steps: int = 300) -> tuple[Tensor, dict[str, Tensor]]:
    weight = nn.Parameter((torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * 0.1).to(dtype))
    optimizer = make([weight])
    for gradient in gradients(steps, dtype):
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def assert_equal(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(one[0], other[0])
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(one[1][name], other[1][name]), name


def in_float64(
    weight: Tensor, gradient: Tensor, step: int, mean: Tensor, square: Tensor, weight_decay: float
) -> tuple[Any, Tensor, Tensor]:
    w, g = weight.double().numpy(), gradient.double().numpy()
    m, v = 0.9 * mean.double().numpy() + 0.1 * g, 0.999 * square.double().numpy() + 0.001 * g * g
    move = 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w * (1 - 1e-2 * weight_decay) - move, mean, square


def by_torchao(
    weight: Tensor, gradient: Tensor, step: int, mean: Tensor, square: Tensor, weight_decay: float
) -> tuple[Any, Tensor, Tensor]:
    adam = pytest.importorskip("torchao.optim.adam", reason="torchao is not among the tools of a developer")
    exact = weight.float()
    numbers = torch.tensor(1e-2), 0.9, 0.999, weight_decay, 1e-8, True, False
    adam.single_param_adam(exact, gradient, torch.tensor(float(step)), mean, square, None, *numbers)
    return exact.double().numpy(), mean, square


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_as_it_stands_it_is_torchs(dtype: torch.dtype, weight_decay: float) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    theirs = trained(lambda params: torch.optim.AdamW(params, **settings, foreach=False), dtype)
    assert_equal(trained(lambda params: AdamW(params, **settings), dtype), theirs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rounded_once_a_step_it_is_torchs_fused_kernel(weight_decay: float) -> None:
    fused = trained(
        lambda params: torch.optim.AdamW(params, 1e-2, weight_decay=weight_decay, fused=True), BF16
    )
    assert_equal(
        trained(lambda params: AdamW(params, 1e-2, weight_decay=weight_decay, where="step"), BF16), fused
    )


@pytest.mark.parametrize("where", ["operation", "step"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_state_in_float32_is_the_formulas(where: Any, weight_decay: float) -> None:
    """Weights go from value to value of bfloat16; each step is the formula's, in float64, to its rounding."""
    weight = nn.Parameter(torch.full((50, 8), 0.5, dtype=BF16))
    optimizer = AdamW([weight], 1e-2, weight_decay=weight_decay, state_dtype="float32", where=where)
    mean = square = np.zeros((50, 8))
    for step, gradient in enumerate(gradients(200, BF16), start=1):
        before = weight.detach().double().numpy()
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double().numpy()
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        decayed = before * (1 - 1e-2 * weight_decay)
        if where == "operation":
            decayed = decayed.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        move = 1e-2 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        expected = (decayed - move).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        found = weight.detach().double().numpy()
        assert (found != expected).mean() < 0.002  # float64 may lie on the other side of a middle
        assert np.abs(found - expected).max() <= 2**-8
    state = optimizer.state[weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == FP32
    np.testing.assert_allclose(state["exp_avg"], mean, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(state["exp_avg_sq"], square, rtol=1e-4)


def test_a_second_moment_in_bfloat16_never_decays_and_one_in_float32_does() -> None:
    """As published: 500 steps without gradient leave it as it was, and 0.999^500 = 0.606 of it."""
    for dtype, expected in (("bfloat16", 1.0), ("float32", 0.999**500)):
        weight = nn.Parameter(torch.ones(10, dtype=BF16))
        optimizer = AdamW([weight], 0.0, state_dtype=dtype)  # type: ignore[arg-type]
        weight.grad = torch.full((10,), 0.3, dtype=BF16)
        optimizer.step()
        first = optimizer.state[weight]["exp_avg_sq"].double().clone()
        weight.grad.zero_()
        for _ in range(500):
            optimizer.step()
        ratio = optimizer.state[weight]["exp_avg_sq"].double() / first
        np.testing.assert_allclose(ratio, expected, rtol=1e-5)


def test_without_bias_correction_the_first_step_is_the_same() -> None:
    adamw = partial(AdamW, lr=1e-2)
    without = partial(adamw, bias_correction=False)
    assert_equal(trained(adamw, FP32, steps=1), trained(without, FP32, steps=1))
    weight, _state = trained(lambda params: AdamW(params, 1e-2, bias_correction=False), FP32, steps=20)
    mean = square = np.zeros((50, 8))
    w = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).double().numpy() * 0.1
    for gradient in gradients(20, FP32):
        g = gradient.double().numpy()
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        w = w - 1e-2 * (mean / 0.1) / (np.sqrt(square / 0.001) + 1e-8)
    np.testing.assert_allclose(weight, w, rtol=1e-4, atol=1e-6)


def test_kahan_is_optimis() -> None:
    """Its moments are debiased otherwise, so both are given betas of 0: the move is the gradient's sign."""
    ours = trained(lambda params: AdamW(params, 1e-4, betas=(0.0, 0.0), rounding="kahan"), BF16)
    theirs = trained(
        lambda params: optimi.AdamW(
            params,
            1e-4,
            betas=(0.0, 0.0),
            eps=1e-8,
            weight_decay=0,
            kahan_sum=True,
            foreach=False,
            triton=False,
        ),
        BF16,
    )
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1]["kahan"], theirs[1]["kahan_comp"])


@pytest.mark.parametrize("where", ["operation", "step"])
def test_kahan_loses_nothing_that_the_nearest_value_loses(where: Any) -> None:
    """A thousand steps of 1e-4 from 1, where bfloat16 goes by 2^-8 and 2^-7, and by nothing at all."""
    places = {}
    for rounding in ("nearest", "kahan"):
        weight = nn.Parameter(torch.ones(4, dtype=BF16))
        optimizer = AdamW([weight], 1e-4, betas=(0.0, 0.0), rounding=rounding, where=where)
        for _ in range(1000):
            weight.grad = torch.ones(4, dtype=BF16)
            optimizer.step()
        rest = optimizer.state[weight].get("kahan", torch.zeros(4))
        places[rounding] = float((weight.detach().double() + rest.double())[0])
    assert places["nearest"] == 1.0
    assert places["kahan"] == pytest.approx(0.9, abs=2e-3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("reference", [in_float64, by_torchao])
def test_stochastic_rounding_is_of_the_exact_value(reference: Exact, weight_decay: float) -> None:
    """Each weight becomes one of the two values beside the one that it has before it is rounded."""
    weight = nn.Parameter(torch.full((50, 8), 0.5, dtype=BF16))
    optimizer = AdamW([weight], 1e-2, weight_decay=weight_decay, rounding="stochastic", where="step", seed=3)
    mean, square = torch.zeros(50, 8, dtype=BF16), torch.zeros(50, 8, dtype=BF16)
    for step, gradient in enumerate(gradients(100, BF16), start=1):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        exact, mean, square = reference(before, gradient, step, mean, square, weight_decay)
        spacing = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
        assert (np.abs(weight.detach().double().numpy() - exact) < spacing * 1.001).all()
        state = optimizer.state[weight]
        mean, square = state["exp_avg"].clone(), state["exp_avg_sq"].clone()


def test_stochastic_rounding_is_right_on_average() -> None:
    """A million draws: the mean is the value within five standard errors, and both neighbours occur."""
    count, start, move = 1_000_000, 1.0, 0.3 * 2**-7
    weight = nn.Parameter(torch.full((count,), start, dtype=BF16))
    optimizer = AdamW([weight], move, betas=(0.0, 0.0), eps=0.0, rounding="stochastic", seed=1)
    weight.grad = torch.full((count,), -1.0, dtype=BF16)
    optimizer.step()
    found = weight.detach().double().numpy()
    assert set(found) == {1.0, 1.0 + 2**-7}
    error = 2**-7 * np.sqrt(0.3 * 0.7 / count)
    assert abs(found.mean() - (start + move)) < 5 * error


def test_stochastic_state_decays_on_average() -> None:
    weight = nn.Parameter(torch.ones(10_000, dtype=BF16))
    optimizer = AdamW([weight], 0.0, state_rounding="stochastic", where="step", seed=1)
    weight.grad = torch.full((10_000,), 0.3, dtype=BF16)
    optimizer.step()
    weight.grad = torch.zeros(10_000, dtype=BF16)
    for _ in range(500):
        optimizer.step()
    ratio = float(optimizer.state[weight]["exp_avg_sq"].double().mean()) / (0.001 * 0.3**2)
    assert ratio == pytest.approx(0.999**500, rel=0.01)


def test_draws_are_the_runs_and_the_same_after_a_stop() -> None:
    def one(seed: int, stop: int | None = None) -> Tensor:
        weight = nn.Parameter(torch.full((50, 8), 0.5, dtype=BF16))
        optimizer = AdamW([weight], 1e-3, state_dtype="float32", rounding="stochastic", seed=seed)
        for step, gradient in enumerate(gradients(20, BF16)):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = AdamW([weight], 1e-3, state_dtype="float32", rounding="stochastic", seed=seed)
                optimizer.load_state_dict(state)
                assert optimizer.state[weight]["exp_avg"].dtype == FP32
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.detach()

    assert torch.equal(one(1), one(1, stop=7))
    assert not torch.equal(one(1), one(2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounding": "up"}, "rounding is 'up', expected one of nearest, stochastic, kahan"),
        ({"rounding": "kahan"}, "rounding is kahan, but the weights are float32"),
        ({"lr": -1.0}, "lr is -1.0, expected 0 or more"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\), expected two numbers from 0 to below 1"),
    ],
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AdamW([nn.Parameter(torch.ones(3))], **settings)
