"""Distances between runs, against loops in float64."""

from pathlib import Path

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring.divergence import Divergence, measure_divergence
from flannel_pl.errors import UserError
from tests.analysis.samples import save_recording, walk

SETS = {"dead": np.array([0, 3, 4]), "all": np.arange(9)}


def measured(*paths: Path) -> dict[str, Divergence]:
    recordings = [flannel_pl.open_recording(path) for path in paths]
    try:
        return measure_divergence([run for recording in recordings for run in recording], SETS)
    finally:
        for recording in recordings:
            recording.close()


def test_every_pair_and_every_start(tmp_path: Path) -> None:
    runs = [walk(seed) for seed in (1, 2, 3)]
    seen: list[int] = []
    with flannel_pl.open_recording(save_recording(tmp_path / "r.safetensors", runs)) as recording:
        got = measure_divergence(list(recording), SETS, advance=seen.append)
    assert seen == [3 * 9 * 4 * 2] * 7
    for name, tokens in SETS.items():
        one = got[name]
        assert one.pairs == ((0, 1), (0, 2), (1, 2))
        chosen = [run[:, tokens].astype(np.float64) for run in runs]
        for number, (first, second) in enumerate(one.pairs):
            exact = [
                np.sqrt(((a - b) ** 2).sum()) for a, b in zip(chosen[first], chosen[second], strict=True)
            ]
            np.testing.assert_allclose(one.distance_PR[number], exact, rtol=1e-6)
        for number, run in enumerate(chosen):
            exact = [np.sqrt(((row - run[0]) ** 2).sum()) for row in run]
            np.testing.assert_allclose(one.evolution_NR[number], exact, rtol=1e-6)
        np.testing.assert_allclose(
            one.ratio_R[1:], one.distance_PR[:, 1:].mean(0) / one.evolution_NR[:, 1:].mean(0)
        )
        assert np.isnan(one.ratio_R[0])


def test_equal_runs_are_no_distance_apart(tmp_path: Path) -> None:
    got = measured(save_recording(tmp_path / "r.safetensors", [walk(1), walk(1)]))
    assert not got["all"].distance_PR.any()


def test_rows_that_only_one_run_has_are_left_out(tmp_path: Path) -> None:
    short = save_recording(tmp_path / "a.safetensors", [walk(1)[:3]])
    assert measured(short, save_recording(tmp_path / "b.safetensors", [walk(2)]))[
        "all"
    ].distance_PR.shape == (1, 3)


def test_runs_of_other_sizes_steps_or_tokens_have_no_distance(tmp_path: Path) -> None:
    first = save_recording(tmp_path / "a.safetensors", [walk(1)])
    wide = save_recording(tmp_path / "b.safetensors", [walk(1, dim=5)])
    with pytest.raises(UserError, match="embeddings of 9 x 4 and run 0 of 9 x 5; there is no distance"):
        measured(first, wide)
    rare = save_recording(tmp_path / "c.safetensors", [walk(1)], steps=range(0, 14, 2))
    with pytest.raises(UserError, match="recorded at other steps"):
        measured(first, rare)
    some = save_recording(tmp_path / "d.safetensors", [walk(1)], recorded_tokens=range(1, 10))
    with pytest.raises(UserError, match="recordings of other tokens"):
        measured(first, some)
