"""AdamW replayed: against torch's own optimizer, and with upstream's mistakes."""

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import torch

from flannel_pl.metrics import adam
from flannel_pl.metrics.adam import AdamSettings, cos_grad_step, predicted_weights, reproduced
from tests.analysis.samples import Array

NUM_STEPS = 24
RATE = 1e-3


@dataclass
class Step:
    """What a step of torch's optimizer did."""

    number: int
    rate: float
    before: Array
    after: Array
    momentum: Array
    variance: Array


def as_array(tensor: torch.Tensor) -> Array:
    """Copies a tensor, bits and all."""
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def train(dtype: torch.dtype, settings: AdamSettings, *, tokens: int = 40, dim: int = 9) -> Iterator[Step]:
    """Trains random weights, among them zeros, tiny and huge ones, on random gradients, among them such."""
    draw = torch.Generator().manual_seed(7)
    W_VD = torch.randn(tokens, dim, generator=draw) * 0.02
    W_VD[0], W_VD[1], W_VD[2], W_VD[3], W_VD[4] = 0.0, 1e-30, 1e30, 1e-40, -0.0
    weight = torch.nn.Parameter(W_VD.to(dtype))
    optimizer = torch.optim.AdamW(
        [weight],
        lr=RATE,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        foreach=False,
        fused=False,
    )
    for number in range(1, NUM_STEPS + 1):
        rate = optimizer.param_groups[0]["lr"] = RATE * (NUM_STEPS - number + 1) / NUM_STEPS
        sizes_V = 10.0 ** torch.linspace(-12, 1, tokens)
        grad_VD = torch.randn(tokens, dim, generator=draw) * sizes_V[:, None]
        grad_VD[::5], grad_VD[1], grad_VD[2], grad_VD[6], grad_VD[7] = 0.0, 1e-30, 1e20, 1e15, 1e-18
        weight.grad = grad_VD.to(dtype)
        before = as_array(weight)
        optimizer.step()
        state = optimizer.state[weight]
        yield Step(
            number, rate, before, as_array(weight), as_array(state["exp_avg"]), as_array(state["exp_avg_sq"])
        )


def replay(step: Step, settings: AdamSettings, *, rate: float | None = None) -> Array:
    return predicted_weights(
        step.before,
        step.momentum,
        step.variance,
        step=step.number,
        learning_rate=step.rate if rate is None else rate,
        settings=settings,
    )


def bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


SETTINGS = [
    pytest.param(AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0), id="no-decay"),
    pytest.param(AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1), id="decay"),
    # Decay that bfloat16 shows, an epsilon that it cannot hold, and one that outweighs most gradients.
    pytest.param(AdamSettings(beta1=0.8, beta2=0.95, epsilon=3.3e-3, weight_decay=20.0), id="large"),
]


@pytest.mark.parametrize("tile", [64, 2**16])
@pytest.mark.parametrize("settings", SETTINGS)
def test_bfloat16_weights_are_those_of_torch_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, settings: AdamSettings, tile: int
) -> None:
    monkeypatch.setattr(adam, "TILE_ELEMENTS", tile)
    for step in train(torch.bfloat16, settings):
        np.testing.assert_array_equal(
            bits(replay(step, settings)), bits(step.after), err_msg=f"step {step.number}"
        )
        assert np.isfinite(step.after.astype(np.float32)).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_weights_are_those_of_torch_up_to_its_square_root(
    monkeypatch: pytest.MonkeyPatch, settings: AdamSettings
) -> None:
    for step in train(torch.float32, settings):
        exact_V, near_V = reproduced(replay(step, settings), step.after)
        assert exact_V.mean() > 0.85
        assert near_V.mean() > 0.95
        np.testing.assert_allclose(replay(step, settings), step.after, rtol=1e-6, atol=1e-3 * 2**-21)

    def sqrt(tensor: torch.Tensor) -> torch.Tensor:
        return torch.pow(tensor.double(), 0.5).to(tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "sqrt", sqrt)  # rounded right, which the MKL's is not everywhere
    for step in train(torch.float32, settings):
        np.testing.assert_array_equal(
            bits(replay(step, settings)), bits(step.after), err_msg=f"step {step.number}"
        )


def test_not_a_number_stays_one_and_infinity_is_no_accident() -> None:
    settings = AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1)
    for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)):
        W = np.array([np.nan, -np.nan, np.inf, 1.0, 1.0, 1.0], dtype)
        m = np.array([0.0, 0.0, 0.0, np.nan, 1.0, 1.0], dtype)
        v = np.array([1.0, 1.0, 1.0, 1.0, -1.0, np.inf], dtype)
        got = predicted_weights(W, m, v, step=1, learning_rate=1e-3, settings=settings).astype(np.float32)
        assert np.isnan(got).tolist() == [True, True, False, True, True, False]
        assert got[2] == np.inf
        assert got[5] == np.float32(1 - 1e-4).astype(dtype)
    payload = np.array([0x7FFF, 0xFFFF], np.uint16).view(ml_dtypes.bfloat16)  # nothing but ones
    one = np.ones(2, ml_dtypes.bfloat16)
    got = predicted_weights(payload, one, one, step=1, learning_rate=1e-3, settings=settings)
    assert np.isnan(got.astype(np.float32)).all()


def test_types_that_no_parameter_has_are_refused() -> None:
    settings = AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
    W, m = np.ones(2, np.float32), np.ones(2, np.float16)
    for moments in (m, W.astype(ml_dtypes.bfloat16)):
        with pytest.raises(ValueError, match="float32, expected one of bfloat16, float32"):
            predicted_weights(W, moments, W, step=1, learning_rate=1e-3, settings=settings)
    with pytest.raises(ValueError, match="weights and moments are float16, expected"):
        predicted_weights(m, m, m, step=1, learning_rate=1e-3, settings=settings)


def test_reproduced_counts_bits_and_neighbours_of_each_token() -> None:
    one, two = np.float32(1), np.float32(2)
    up = np.nextafter(one, two)
    nan, other_nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    predicted = np.array([[1, 1, 1, 1], [0.0, nan, nan, -1e-45], [1, 2, 3, 4]], np.float32)
    recorded = np.array(
        [[1, up, np.nextafter(up, two), -1], [-0.0, nan, other_nan, 1e-45], [1, 2, 3, 5]], np.float32
    )
    exact_S, near_S = reproduced(predicted, recorded)
    assert exact_S.tolist() == [0.25, 0.25, 0.75]  # 0.0 is not -0.0
    assert near_S.tolist() == [0.5, 0.5, 0.75]  # and no NaN is near another


# What upstream wrote instead (1.31k; 1.24c5-c7; 1.25a/b, 1.17a), on the same data.


def fraction(step: Step, predicted: Array) -> float:
    return float(reproduced(predicted, step.after)[0].mean())


def slips(step: Step, settings: AdamSettings) -> dict[str, Array]:
    """Predictions with one mistake each; everything else is rounded as it should be."""

    def rounded(values: Array) -> Array:
        return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    def predicted(decay: float, *, eps_outside: bool) -> Array:
        W, m, v = (x.astype(np.float32) for x in (step.before, step.momentum, step.variance))
        eps = np.array(settings.epsilon, np.float32)
        root = rounded(np.sqrt(v)) if eps_outside else rounded(np.sqrt(rounded(v + eps)))
        denominator = rounded(root / np.float32((1 - settings.beta2**step.number) ** 0.5))
        if eps_outside:
            denominator = rounded(denominator + rounded(eps))
        size = np.float32(-step.rate / (1 - settings.beta1**step.number))
        moved: Array = rounded(W * np.float32(1 - decay)) + size * m / denominator
        return moved.astype(ml_dtypes.bfloat16)

    return {
        "none": predicted(step.rate * settings.weight_decay, eps_outside=True),
        "sqrt(v + eps)": predicted(step.rate * settings.weight_decay, eps_outside=False),
        "rate of the first step": replay(step, settings, rate=RATE),
        "decay without the rate": predicted(settings.weight_decay, eps_outside=True),
    }


def test_upstreams_mistakes_show() -> None:
    settings = AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1)
    steps = list(train(torch.bfloat16, settings))[2:]
    found: dict[str, list[float]] = {}
    for step in steps:
        assert fraction(step, replay(step, settings)) == 1
        for name, predicted in slips(step, settings).items():
            found.setdefault(name, []).append(fraction(step, predicted))
    means = {name: np.mean(fractions) for name, fractions in found.items()}
    assert means["none"] == 1
    assert means["sqrt(v + eps)"] < 0.7
    assert means["rate of the first step"] < 0.7
    assert means["decay without the rate"] < 0.5


def naive_cosines(grad_SD: Array, dW_SD: Array) -> list[float]:
    result = []
    for grad, step in zip(grad_SD.astype(np.float64), dW_SD.astype(np.float64), strict=True):
        lengths = np.linalg.norm(grad), np.linalg.norm(step)
        result.append(float(grad @ step / lengths[0] / lengths[1]) if all(lengths) else float("nan"))
    return result


def test_cosines_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    grad_SD = draw.normal(0, 1e-4, (60, 8)).astype(np.float32)
    dW_SD = (-10 * grad_SD + draw.normal(0, 1e-3, (60, 8))).astype(np.float32)
    grad_SD[3] = dW_SD[5] = grad_SD[7] = dW_SD[7] = 0
    grad_SD[10:20] *= np.float32(1e-18)  # squares, then products, below and beyond what float32 holds
    grad_SD[20:30] *= np.float32(1e-30)
    dW_SD[25:35] *= np.float32(1e-20)
    grad_SD[40:50] *= np.float32(1e35)
    dW_SD[45:55] *= np.float32(1e30)
    expected = naive_cosines(grad_SD, dW_SD)
    assert np.flatnonzero(np.isnan(expected)).tolist() == [3, 5, 7]
    # 1e-34 is below the normal numbers of float32 by 4 of 24 bits at most.
    np.testing.assert_allclose(cos_grad_step(grad_SD, dW_SD), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_has_no_direction(value: float) -> None:
    grad = np.array([[value, 1.0], [1.0, 0.0]], np.float32)
    cosines = cos_grad_step(grad, np.ones((2, 2), np.float32))
    assert np.isnan(cosines[0])
    assert cosines[1] == pytest.approx(0.5**0.5)
