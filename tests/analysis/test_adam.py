"""AdamW replayed: against torch's own optimizer, on a real run, and with upstream's mistakes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.analysis import adam
from flannel_pl.analysis import measure as measure_module
from flannel_pl.analysis.adam import AdamSettings, cos_grad_step, predicted_weights, reproduced
from flannel_pl.analysis.measure import RunMeasures, measure_run
from flannel_pl.analysis.measured import measure_experiment
from tests.analysis.samples import Array
from tests.conftest import SmallData

EXACT, WITHIN_ONE, COSINE = "adam_exact_fraction", "adam_within_one_fraction", "cos_grad_step"
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


# Whole runs, as the project trains and measures them.


def fit(small_data: SmallData, folder: Path, *arguments: str) -> Path:
    """Trains a run of 12 steps with everything recorded; returns the experiment's folder."""
    command = ["fit", *small_data.arguments, "--experiment.output_dir", str(folder)]
    command += ["--experiment.seeds", "43", "--trainer.max_steps", "12", "--launch.threads_per_run", "1"]
    command += ["--trainer.enable_progress_bar", "false", *arguments]
    assert main(command) == 0
    return folder / "flannel"


@pytest.fixture(scope="module")
def gathered(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gathered file of a run."""
    return fit(small_data, tmp_path_factory.mktemp("run")) / "flannel.safetensors"


def measured(path: Path) -> RunMeasures:
    with flannel_pl.open_recording(path) as recording:
        return measure_run(recording, 0)


def assert_all_reproduced(measures: RunMeasures) -> None:
    assert set(measures.series) == {"dead", "live", "all"}
    for series in measures.series.values():
        for name in (EXACT, WITHIN_ONE):
            assert np.isnan(series[name][0])
            assert series[name][1:].tolist() == [1.0] * (len(series[name]) - 1)
        assert np.isnan(series[COSINE][0])
        assert (series[COSINE][1:] < -0.3).all()
    assert not measures.left_out


@pytest.mark.parametrize("arguments", [(), ("--model.weight_decay", "20", "--model.adam_beta2", "0.95")])
@pytest.mark.parametrize("stretch_bytes", [1, 30_000])
def test_every_weight_of_a_real_run_is_reproduced(
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    stretch_bytes: int,
) -> None:
    monkeypatch.setattr(measure_module, "STRETCH_BYTES", stretch_bytes)
    folder = fit(small_data, tmp_path, *arguments)
    assert_all_reproduced(measured(folder))  # gathered: the config is the experiment's
    assert_all_reproduced(measured(folder / "run_0"))  # a shard: its own


def test_swept_settings_are_those_of_the_run(small_data: SmallData, tmp_path: Path) -> None:
    sweep = '{"model.weight_decay": [0.0, 20.0], "model.adam_beta1": [0.5]}'
    folder = fit(small_data, tmp_path, "--experiment.sweep", sweep)
    with flannel_pl.open_recording(folder) as recording:
        for index in recording.runs:
            assert_all_reproduced(measure_run(recording, index))


def test_float32_weights_of_a_real_run(small_data: SmallData, tmp_path: Path) -> None:
    dtypes = "{embeddings: float32, grads: float32, momentum: float32, variance: float32}"
    folder = fit(small_data, tmp_path, "--model.param_dtype", "float32", "--recorder.dtypes", dtypes)
    series = measured(folder).series["all"]
    assert series[EXACT][1:].min() > 0.9
    assert series[WITHIN_ONE][1:].min() > 0.97
    # Without config: from 0.9990000128746033, as float32 has beta2, most weights would not be reproduced.
    save_file(load_file(folder / "flannel.safetensors"), tmp_path / "bare.safetensors")
    bare = measured(tmp_path / "bare.safetensors").series["all"]
    np.testing.assert_array_equal(bare[EXACT], series[EXACT])


def test_a_file_without_config_has_the_settings_in_its_scalars(gathered: Path, tmp_path: Path) -> None:
    tensors = load_file(gathered)
    path = tmp_path / "bare.safetensors"
    save_file(tensors, path)
    measures = measured(path)
    assert_all_reproduced(measures)
    del tensors["adam_beta2"], tensors["weight_decay"]
    save_file(tensors, path)
    reason = "the file does not say which adam_beta2, weight_decay the optimizer had"
    assert measured(path).left_out == {EXACT: reason, WITHIN_ONE: reason}


def changed(gathered: Path, path: Path, changes: dict[str, Any]) -> Path:
    """Writes a copy without config, with some tensors changed; None removes one."""
    tensors = load_file(gathered)
    for name, change in changes.items():
        tensor = tensors.pop(f"run_0_{name}")
        if change is not None:
            tensors[f"run_0_{name}"] = change(tensor).contiguous()
    save_file(tensors, path)
    return path


LACKING = [
    ({"grads": None}, {COSINE: "grads are not recorded"}),
    ({"momentum": None}, {EXACT: "momentum is not recorded"}),
    (
        {"momentum": None, "variance": None, "grads": None},
        {COSINE: "grads are not recorded", EXACT: "momentum and variance are not recorded"},
    ),
    ({"learning_rates": None}, {EXACT: "learning_rates are not recorded"}),
    (
        {"variance": lambda x: x.half()},
        {EXACT: "the optimizer had variance as bfloat16, and the file has float16"},
    ),
    (
        {name: (lambda x: x.half()) for name in ("embeddings", "momentum", "variance")},
        {EXACT: "the optimizer had embeddings as bfloat16 or float32, and the file has float16"},
    ),
    (
        {"momentum": lambda x: x[:, :50]},
        {EXACT: "momentum has the shape (13, 50, 16) and embeddings (13, 100, 16), expected the same"},
    ),
]


@pytest.mark.parametrize(("changes", "reasons"), LACKING)
def test_what_is_lacking_is_said(
    gathered: Path, tmp_path: Path, changes: dict[str, Any], reasons: dict[str, str]
) -> None:
    measures = measured(changed(gathered, tmp_path / "r.safetensors", changes))
    if EXACT in reasons:
        reasons = {**reasons, WITHIN_ONE: reasons[EXACT]}
    metrics = (EXACT, WITHIN_ONE, COSINE)
    assert {name: measures.left_out[name] for name in metrics if name in measures.left_out} == reasons
    for series in measures.series.values():
        assert {name for name in metrics if name in series} == set(metrics) - set(reasons)


def test_steps_that_are_not_recorded_cannot_be_replayed(small_data: SmallData, tmp_path: Path) -> None:
    measures = measured(fit(small_data, tmp_path, "--recorder.every_n_steps", "2"))
    reason = "rows are 2 steps apart, and it takes the weights before and after each step"
    assert measures.left_out == dict.fromkeys((COSINE, EXACT, WITHIN_ONE), reason)


def test_a_recording_narrower_than_the_parameters_cannot_be_replayed(
    small_data: SmallData, tmp_path: Path
) -> None:
    narrow = ["--recorder.dtypes", "{embeddings: bfloat16, momentum: bfloat16, variance: bfloat16}"]
    measures = measured(fit(small_data, tmp_path, "--model.param_dtype", "float32", *narrow))
    reason = "the optimizer had embeddings as float32, and the file has bfloat16"
    assert measures.left_out.items() >= {EXACT: reason, WITHIN_ONE: reason}.items()
    rests = "the weights were float32 and are recorded as bfloat16, which rests at other times"
    narrower = ("frozen_fraction", "lattice_l2", "lives of tokens")
    assert [measures.left_out[name] for name in narrower] == [rests] * 3
    assert not {"frozen_fraction", "lattice_l2"} & measures.series["dead"].keys()
    assert (measures.tokens, measures.histogram) == ({}, {})
    assert (measures.series["dead"][COSINE][1:] < -0.3).all()


def test_the_series_is_the_median_over_tokens_that_move(gathered: Path, tmp_path: Path) -> None:
    def frozen(W_RVD: torch.Tensor) -> torch.Tensor:
        W_RVD[:, :30] = W_RVD[0, :30]
        return W_RVD

    def partly_zero(grad_RVD: torch.Tensor) -> torch.Tensor:
        grad_RVD[:, 40:60] = 0
        grad_RVD[4] = 0
        return grad_RVD

    path = changed(gathered, tmp_path / "r.safetensors", {"embeddings": frozen, "grads": partly_zero})
    got = measured(path).series
    with flannel_pl.open_recording(path) as recording:
        W_RVD = recording.run(0).embeddings[:].astype(np.float64)
        grad_RVD = recording.run(0).grads[:].astype(np.float64)
        dead = recording.masks["dead_indices"]
    assert np.isnan(got["all"][COSINE][[0, 4]]).all()
    for row in (1, 2, 3, *range(5, 13)):
        cosines_V = np.array(naive_cosines(grad_RVD[row], W_RVD[row] - W_RVD[row - 1]))
        assert np.isnan(cosines_V).sum() >= 50
        for name, x_S in (("all", cosines_V), ("dead", cosines_V[dead])):
            moving = x_S[~np.isnan(x_S)]
            expected = np.median(moving) if len(moving) else np.nan
            np.testing.assert_allclose(got[name][COSINE][row], expected, rtol=1e-5)
    assert got["all"][EXACT][1:].max() < 0.9


def test_what_is_read_is_announced(gathered: Path, tmp_path: Path) -> None:
    row_bytes = 100 * 16 * 2
    for changes, num_tensors in (
        ({}, 4),
        ({"grads": None}, 3),
        ({"variance": None}, 2),
        ({"momentum": None, "grads": None}, 1),
    ):
        announced: list[int] = []
        read: list[int] = []
        with flannel_pl.open_recording(changed(gathered, tmp_path / "r.safetensors", changes)) as recording:
            measure_experiment(recording, expect=announced.append, advance=read.append)
        assert sum(announced) == sum(read) == 13 * row_bytes * num_tensors
