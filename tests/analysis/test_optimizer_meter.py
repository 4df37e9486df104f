"""What a real run's optimizer did, measured: every weight is reproduced, and what is lacking is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.analysis.measuring import one_run
from flannel_pl.analysis.measuring.all_runs import measure_experiment
from flannel_pl.analysis.measuring.one_run import measure_run
from flannel_pl.analysis.measuring.results import RunMeasures
from tests.conftest import SmallData
from tests.metrics.test_adam import naive_cosines

EXACT, WITHIN_ONE, COSINE = "adam_exact_fraction", "adam_within_one_fraction", "cos_grad_step"


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
    monkeypatch.setattr(one_run, "STRETCH_BYTES", stretch_bytes)
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
        # The cloud reads the embeddings of its steps, here of all, once more.
        assert sum(announced) == sum(read) == 13 * row_bytes * (num_tensors + 1)
