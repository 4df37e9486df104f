"""Recordings streamed through the metrics, against loops over every row and token in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flannel_pl
from flannel_pl.analysis.measuring import one_run
from flannel_pl.analysis.measuring.one_run import measure_run, measured_bytes
from flannel_pl.analysis.measuring.results import RunMeasures
from tests.analysis.samples import Array, save_recording, walk

DEAD = [0, 1, 4, 5]
ONLY_EMBEDDINGS = {
    "cos_grad_step": "grads are not recorded",
    "adam_exact_fraction": "momentum and variance are not recorded",
    "adam_within_one_fraction": "momentum and variance are not recorded",
}
"""What the recordings here lack; see test_adam.py."""


def measured(path: Path, index: int = 0) -> RunMeasures:
    with flannel_pl.open_recording(path) as recording:
        return measure_run(recording, index)


def naive(W_RSD: Array) -> dict[str, list[float]]:
    """The definitions, word by word."""
    rows = W_RSD.astype(np.float64)
    norm = np.linalg.norm
    result: dict[str, list[float]] = {}

    def add(name: str, value: Any) -> None:
        result.setdefault(name, []).append(float(value))

    for k, W_SD in enumerate(rows):
        c_D = W_SD.mean(axis=0)
        add("centroid_norm", norm(c_D))
        add("origin_radius", np.mean([norm(w) for w in W_SD]))
        add("centroid_radius", np.mean([norm(w - c_D) for w in W_SD]))
        add("bounding_radius", max(norm(w - c_D) for w in W_SD))
        add("std_per_dim", np.mean([np.sqrt(np.mean((column - column.mean()) ** 2)) for column in W_SD.T]))
        add("centroid_drift", norm(c_D - rows[0].mean(axis=0)))
        if k == 0:
            continue
        before = rows[k - 1]
        dc_D = c_D - before.mean(axis=0)
        steps = [(w, now - w) for w, now in zip(before, W_SD, strict=True)]
        add("centroid_speed", norm(dc_D))
        add("token_speed", np.mean([norm(dw) for _, dw in steps]))
        add("thermal_speed", np.mean([norm(dw - dc_D) for _, dw in steps]))
        radial = [dw @ w / norm(w) / norm(dw) for w, dw in steps if norm(w) > 0 and norm(dw) > 0]
        add("radial_fraction", np.mean(radial) if radial else np.nan)
        add("abs_radial_fraction", np.mean(np.abs(radial)) if radial else np.nan)
        add("frozen_fraction", np.mean([not dw.any() for _, dw in steps]))
        add("zero_component_fraction", np.mean([dw == 0 for _, dw in steps]))
        change = [norm(w + dw) - norm(w) for w, dw in steps]
        add("outward_fraction", np.mean([x > 1e-7 for x in change]))
        add("inward_fraction", np.mean([x < -1e-7 for x in change]))
    return result


@pytest.mark.parametrize("stretch_bytes", [1, 150, 10**6])
def test_every_metric_of_every_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch_bytes: int
) -> None:
    monkeypatch.setattr(one_run, "STRETCH_BYTES", stretch_bytes)
    runs = [walk(1), walk(2)]
    path = save_recording(tmp_path / "r.safetensors", runs, dead=DEAD)
    live = [token for token in range(9) if token not in DEAD]
    for index, W_RVD in enumerate(runs):
        got = measured(path, index)
        assert got.label == f"seed {42 + index}"
        for name, tokens in (("dead", DEAD), ("live", live), ("all", list(range(9)))):
            for metric, values in naive(W_RVD[:, tokens]).items():
                series = got.series[name][metric]
                assert series.shape == (7,)
                motion = len(values) == 6
                assert np.isnan(series[0]) == motion
                np.testing.assert_allclose(
                    series[int(motion) :], values, rtol=2e-5, atol=1e-9, err_msg=metric
                )
        apart = W_RVD[:, live].astype(float).mean(1) - W_RVD[:, DEAD].astype(float).mean(1)
        np.testing.assert_allclose(got.series["all"]["separation"], np.linalg.norm(apart, axis=1), rtol=1e-5)
        assert got.tokens["dead"]["freeze_step"].tolist() == [3, 0, -1, -1]
        assert got.histogram["all"].sum(axis=1).tolist() == [0, *[9] * 6]
        assert np.isnan(got.scalars["loss"][0])
        assert got.left_out == ONLY_EMBEDDINGS


def test_lattice_displacement_is_in_units_of_the_last_place(tmp_path: Path) -> None:
    # 1.0 has an ULP of 2^-7, 0.5 one of 2^-8: steps of three and of one of them.
    W_RVD = np.array([[[1.0, 0.5]], [[1.0 + 3 * 2**-7, 0.5 + 2**-8]]], dtype=np.float32)
    series = measured(save_recording(tmp_path / "r.safetensors", [W_RVD])).series["all"]
    assert series["lattice_l1"][1] == 4
    assert series["lattice_linf"][1] == 3
    assert series["lattice_l2"][1] == pytest.approx(10**0.5)
    assert series["lattice_hop_fraction"][1] == 1


def test_a_single_row_has_no_motion(tmp_path: Path) -> None:
    got = measured(save_recording(tmp_path / "r.safetensors", [walk(1, num_rows=1)], dead=DEAD))
    assert np.isnan(got.series["dead"]["token_speed"]).all()
    assert np.isfinite(got.series["dead"]["origin_radius"]).all()
    assert np.isnan(got.series["dead"]["path_efficiency"]).all()


def test_nothing_that_ever_moves_is_frozen_not_a_perfect_lattice(tmp_path: Path) -> None:
    W_RVD = np.repeat(walk(1, num_rows=1), 4, axis=0)
    W_RVD[:, 3] = 0.0
    series = measured(save_recording(tmp_path / "r.safetensors", [W_RVD])).series["all"]
    assert series["frozen_fraction"][1:].tolist() == [1, 1, 1]
    assert series["lattice_hop_fraction"][1:].tolist() == [0, 0, 0]
    assert np.isnan(series["radial_fraction"]).all()


def test_sets_without_tokens_are_left_out_with_the_reason(tmp_path: Path) -> None:
    got = measured(save_recording(tmp_path / "r.safetensors", [walk(1)]))
    assert set(got.series) == {"live", "all"}
    assert got.left_out == ONLY_EMBEDDINGS | {"the dead tokens": "no dead token is recorded"}
    got = measured(save_recording(tmp_path / "bare.safetensors", [walk(1)], masks=False))
    assert set(got.series) == {"all"}
    assert "has no masks" in got.left_out["the dead tokens"]


def test_a_recording_of_some_tokens_finds_the_dead_among_them(tmp_path: Path) -> None:
    W_RVD = walk(1)
    ids = list(range(0, 18, 2))
    got = measured(save_recording(tmp_path / "r.safetensors", [W_RVD], dead=[2, 3, 8], recorded_tokens=ids))
    expected = naive(W_RVD[:, [1, 4]])["origin_radius"]
    np.testing.assert_allclose(got.series["dead"]["origin_radius"], expected, rtol=1e-5)


def test_float32_weights_have_a_finer_lattice(tmp_path: Path) -> None:
    W_RVD = np.array([[[1.0, 1.0]], [[1.0 + 2**-23, 1.0]]], dtype=np.float32)
    path = save_recording(tmp_path / "r.safetensors", [W_RVD], dtype=torch.float32)
    assert measured(path).series["all"]["lattice_l1"][1] == 1


def test_float16_has_no_lattice_of_ours(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1)], dtype=torch.float16)
    got = measured(path)
    assert "recorded as float16" in got.left_out["lattice_l1"]
    assert "lattice_l1" not in got.series["all"]
    assert not got.tokens
    assert np.isfinite(got.series["all"]["token_speed"][1:]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_so(tmp_path: Path, value: float) -> None:
    W_RVD = walk(1)
    W_RVD[3:, 2] = value
    got = measured(save_recording(tmp_path / "r.safetensors", [W_RVD], dead=[0, 1])).series
    assert not np.isfinite(got["live"]["origin_radius"][3:]).any()
    assert np.isfinite(got["dead"]["origin_radius"]).all()


def test_without_embeddings_there_is_the_loss_and_a_reason(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1)], dead=[0])
    tensors = load_file(path)
    del tensors["run_0_embeddings"]
    save_file(tensors, path)
    with flannel_pl.open_recording(path) as recording:
        measures = measure_run(recording, 0)
        assert measured_bytes(recording, 0) == 0
    assert (measures.series, measures.tokens, measures.histogram) == ({}, {}, {})
    assert measures.scalars["loss"][1:].tolist() == [1] * 6
    reason = "the embeddings are not recorded; --recorder.tensors [embeddings, losses] would"
    assert measures.left_out == {"every metric of tokens": reason}


def test_a_file_of_the_notebook_has_its_loss_in_bfloat16_only(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1)])
    tensors = load_file(path)
    tensors["run_0_losses"] = tensors.pop("run_0_losses_f32").bfloat16() + 0.01
    save_file(tensors, path)
    with flannel_pl.open_recording(path) as recording:
        assert measure_run(recording, 0).scalars["loss"][1:].tolist() == [1.0078125] * 6
