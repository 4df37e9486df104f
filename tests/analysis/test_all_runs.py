"""A whole experiment measured, and measured again."""

from pathlib import Path

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring.all_runs import measure_experiment
from flannel_pl.analysis.measuring.divergence import Divergence, joined
from flannel_pl.analysis.measuring.results import Measures
from tests.analysis.samples import save_recording, walk
from tests.recording.recording_samples import make_experiment

ROW_BYTES = 9 * 4 * 2


def measured(path: Path, folder: Path | None = None) -> tuple[Measures, int, int]:
    """Returns the measures, the bytes that were announced, and those that were read."""
    announced: list[int] = []
    read: list[int] = []
    with flannel_pl.open_recording(path) as recording:
        result = measure_experiment(
            recording, cache_folder=folder, expect=announced.append, advance=read.append
        )
    return result, sum(announced), sum(read)


def test_runs_and_their_distances(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "trial.safetensors", [walk(1), walk(2)], dead=[0, 1])
    measures, announced, read = measured(path)
    assert measures.title == "trial"
    assert [run.label for run in measures.runs] == ["seed 42", "seed 43"]
    assert measures.pairs["dead"].pairs == ((0, 1),)
    assert announced == read == (2 * 2 + 1) * 7 * ROW_BYTES  # one of them has a cloud
    assert measures.dim == 4


def test_a_second_time_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "trial.safetensors", tmp_path / "cache"
    save_recording(path, [walk(1), walk(2)], dead=[0, 1])
    first, _, read = measured(path, folder)
    assert read == (2 * 2 + 1) * 7 * ROW_BYTES
    again, announced, read = measured(path, folder)
    assert (announced, read) == (0, 0)
    np.testing.assert_array_equal(
        again.runs[1].series["dead"]["token_speed"], first.runs[1].series["dead"]["token_speed"]
    )
    np.testing.assert_array_equal(again.pairs["all"].distance_PR, first.pairs["all"].distance_PR)
    np.testing.assert_array_equal(again.clouds[0].points_F3S, first.clouds[0].points_F3S)
    (folder / "run_1.npz").unlink()
    assert measured(path, folder)[1:] == (7 * ROW_BYTES, 7 * ROW_BYTES)
    (folder / "pairs.npz").write_bytes(b"damaged")
    assert measured(path, folder)[1:] == (2 * 7 * ROW_BYTES, 2 * 7 * ROW_BYTES)
    monkeypatch.setattr("flannel_pl.analysis.measuring.cache._code", lambda: b"other formulas")
    assert measured(path, folder)[2] == (2 * 2 + 1) * 7 * ROW_BYTES


def test_a_single_run_has_no_distances_and_says_so(tmp_path: Path) -> None:
    measures, announced, read = measured(save_recording(tmp_path / "one.safetensors", [walk(1)]))
    assert measures.pairs == {}
    assert measures.left_out == {
        "distances between runs": "it takes two runs that differ in their seed only to measure their distance"
    }
    assert announced == read == 2 * 7 * ROW_BYTES


def test_runs_that_cannot_be_compared_are_measured_all_the_same(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "two.safetensors", [walk(1), walk(2, dim=5)])
    measures, _, _ = measured(path)
    assert len(measures.runs) == 2
    assert "there is no distance between them" in measures.left_out["distances between runs"]


def test_distances_are_between_runs_that_differ_in_their_seed_only(tmp_path: Path) -> None:
    def swept(run: int) -> dict[str, float]:
        return {"model.init_scale": (0.02, 0.03)[run % 2]}

    make_experiment(tmp_path / "sweep", num_runs=5, gather="index", swept=swept)
    measures, announced, read = measured(tmp_path / "sweep")
    assert measures.pairs["dead"].pairs == ((0, 2), (0, 4), (2, 4), (1, 3))
    assert measures.pairs["dead"].evolution_NR.shape[0] == 5
    assert announced == read


def test_groups_of_other_lengths_are_joined() -> None:
    short = Divergence(((1, 3),), np.array([[1.0, 2.0]]), np.array([[0.0, 10.0], [0.0, 30.0]]))
    long = Divergence(((0, 2),), np.array([[5.0, 6.0, 7.0]]), np.array([[0.0, 0.0, 1.0], [0.0, 20.0, 2.0]]))
    both = joined([short, long])
    assert both.pairs == ((1, 3), (0, 2))
    np.testing.assert_array_equal(both.distance_PR, [[1, 2, np.nan], [5, 6, 7]])
    np.testing.assert_array_equal(
        both.evolution_NR, [[0, 0, 1], [0, 10, np.nan], [0, 20, 2], [0, 30, np.nan]]
    )
