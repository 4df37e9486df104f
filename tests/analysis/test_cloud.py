"""The cloud: which tokens and rows it has, its axes, its coordinates, and the words of its tokens."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring import cache
from flannel_pl.analysis.measuring.cloud import (
    MAX_FRAMES,
    MAX_TOKENS,
    frame_rows,
    measure_cloud,
    principal_axes,
)
from flannel_pl.analysis.measuring.results import Cloud
from flannel_pl.recording.vocabulary import vocabulary_of
from tests.analysis.samples import Array, save_recording, walk


def cloud_of(path: Path) -> Cloud | None:
    with flannel_pl.open_recording(path) as recording:
        return measure_cloud(recording, recording.run(0), "seed 42")


def test_coordinates_are_weights_along_the_axes_of_the_last_row(tmp_path: Path) -> None:
    W_RVD = walk(1)
    cloud = cloud_of(save_recording(tmp_path / "r.safetensors", [W_RVD], dead=[1, 4]))
    assert cloud is not None
    assert cloud.tokens_S.tolist() == [1, 4, 0, 2, 3, 5, 6, 7, 8]
    assert cloud.dead_S.tolist() == [1, 1, *[0] * 7]
    last = W_RVD[-1].astype(np.float64)
    values, axes = np.linalg.eigh(np.cov(last.T, bias=True))
    for axis in range(3):
        direction = axes[:, -1 - axis]
        expected = W_RVD[:, cloud.tokens_S] @ direction
        shown = cloud.points_F3S[:, axis]
        assert min(np.abs(shown - expected).max(), np.abs(shown + expected).max()) < 1e-6
    np.testing.assert_allclose(cloud.shares_3, values[::-1][:3] / values.sum())
    assert (cloud.fitted_step, cloud.steps_F.tolist()) == (6, [*range(7)])


@pytest.mark.parametrize(("num_rows", "expected"), [(1, 1), (2, 2), (MAX_FRAMES, MAX_FRAMES), (1001, 45)])
def test_frames_begin_and_end_with_the_run_and_are_few(num_rows: int, expected: int) -> None:
    rows = frame_rows(num_rows)
    assert (len(rows), rows[0], rows[-1]) == (expected, 0, num_rows - 1)
    assert (np.diff(rows) > 0).all()


def test_early_rows_are_all_there() -> None:
    assert set(range(5)) <= set(frame_rows(1001).tolist())


def test_a_few_hundred_tokens_are_shown_evenly_spread(tmp_path: Path) -> None:
    W_RVD = walk(1, num_rows=2, num_tokens=1000)
    cloud = cloud_of(save_recording(tmp_path / "r.safetensors", [W_RVD], dead=range(300)))
    assert cloud is not None
    dead, live = cloud.tokens_S[cloud.dead_S == 1], cloud.tokens_S[cloud.dead_S == 0]
    assert (len(dead), len(live)) == (MAX_TOKENS, MAX_TOKENS)
    assert (dead[0], dead[-1], live[0], live[-1]) == (0, 299, 300, 999)
    assert np.diff(live).max() <= 4


def test_without_masks_nobody_is_dead_or_live(tmp_path: Path) -> None:
    cloud = cloud_of(save_recording(tmp_path / "r.safetensors", [walk(1)], masks=False))
    assert cloud is not None
    assert cloud.dead_S.tolist() == [-1] * 9


def test_axes_are_of_the_last_finite_row_and_later_ones_are_gaps(tmp_path: Path) -> None:
    W_RVD = walk(1)
    W_RVD[5:, 3] = np.nan
    cloud = cloud_of(save_recording(tmp_path / "r.safetensors", [W_RVD]))
    assert cloud is not None
    assert cloud.fitted_step == 4
    assert np.isfinite(cloud.points_F3S[:5]).all()
    assert np.isnan(cloud.points_F3S[5:]).any()
    W_RVD[:, 2] = np.inf
    assert cloud_of(save_recording(tmp_path / "s.safetensors", [W_RVD])) is None


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (9, 1), (9, 2), (4, 40)])
@pytest.mark.parametrize("scale", [0.0, 1e-39, 1.0, 1e30])
def test_there_are_always_three_axes(shape: tuple[int, int], scale: float) -> None:
    W_SD: Array = np.random.default_rng(0).normal(size=shape) * scale
    axes_3D, shares_3 = principal_axes(W_SD)
    assert axes_3D.shape == (3, shape[1])
    lengths = np.linalg.norm(axes_3D, axis=1)
    assert all(length == pytest.approx(1) or length == 0 for length in lengths)
    assert np.isfinite(shares_3).all()
    assert shares_3.sum() == pytest.approx(
        1 if scale and shape[0] > 1 and min(shape) <= 3 else shares_3.sum()
    )


def test_a_cloud_comes_back(tmp_path: Path) -> None:
    cloud = cloud_of(save_recording(tmp_path / "r.safetensors", [walk(1)], dead=[1]))
    assert cloud is not None
    cache.save_cloud(tmp_path / "c.npz", "mark", cloud)
    again = cache.load_cloud(tmp_path / "c.npz", "mark")
    assert again is not None
    assert (again.label, again.fitted_step, again.run) == ("seed 42", 6, 0)
    np.testing.assert_array_equal(again.points_F3S, cloud.points_F3S)
    np.testing.assert_array_equal(again.dead_S, cloud.dead_S)
    assert cache.load_cloud(tmp_path / "c.npz", "of something else") is None


def texts(path: object, content: bytes | None) -> dict[int, str]:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    data = {"config": {"data": {"tokenizer_path": path}}, "provenance": {"data": {"tokenizer": digest}}}
    return {token: text for text, token in vocabulary_of(data).items() if token in (0, 2)}


def test_words_are_those_of_the_tokenizer_with_the_recorded_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps({"model": {"vocab": {"a": 0, "b": 1, "<c>": 2}}}).encode()
    path = tmp_path / "own.json"
    path.write_bytes(content)
    assert texts(str(path), content) == {0: "a", 2: "<c>"}
    assert texts(str(path), content + b" ") == {}  # another one
    assert texts(str(path), None) == {}
    assert texts(str(tmp_path / "gone.json"), content) == {}
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(tmp_path / "cache"))
    assert texts(None, content) == {}
    (tmp_path / "cache" / "builtin-0").mkdir(parents=True)
    (tmp_path / "cache" / "builtin-0" / "any.json").write_bytes(content)
    assert texts(None, content) == {0: "a", 2: "<c>"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": []}',
        b'{"model": {"vocab": 3}}',
        b'{"added_tokens": [3]}',
        b"[" * 100_000,
    ],
)
def test_a_tokenizer_of_another_form_has_no_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.json").write_bytes(content)
    assert texts(str(tmp_path / "own.json"), content) == {}


def test_unigrams_and_added_tokens_have_words(tmp_path: Path) -> None:
    content = b'{"model": {"vocab": [["x", -1.0], ["y", -2.0]]}, "added_tokens": [{"id": 2, "content": "z"}]}'
    (tmp_path / "own.json").write_bytes(content)
    assert texts(str(tmp_path / "own.json"), content) == {0: "x", 2: "z"}
