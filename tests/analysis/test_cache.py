"""What was measured once comes back as it was, and only for the same recording."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring import cache
from flannel_pl.analysis.measuring.divergence import measure_divergence
from flannel_pl.analysis.measuring.one_run import measure_run
from tests.analysis.samples import save_recording, walk
from tests.recording.recording_samples import make_experiment


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    else:
        assert got == expected


def test_measures_of_a_run_come_back(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1), walk(2)], dead=[0, 1])
    with flannel_pl.open_recording(path) as recording:
        measures = measure_run(recording, 1)
        mark = cache.fingerprint(recording, 1)
        assert mark == cache.fingerprint(recording, 1) != cache.fingerprint(recording, 0)
    kept = tmp_path / "run_1.npz"
    cache.save_run(kept, mark, measures)
    again = cache.load_run(kept, mark)
    assert again is not None
    for field in dataclasses.fields(measures):
        assert_same(getattr(again, field.name), getattr(measures, field.name))
    assert cache.load_run(kept, "of something else") is None


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, keep: int) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1)])
    with flannel_pl.open_recording(path) as recording:
        measures = measure_run(recording, 0)
    kept = tmp_path / "run_0.npz"
    assert cache.load_run(kept, "mark") is None
    cache.save_run(kept, "mark", measures)
    content = kept.read_bytes()
    kept.write_bytes(content[:keep])
    assert cache.load_run(kept, "mark") is None


def test_no_flipped_bit_is_taken_for_a_measure(tmp_path: Path) -> None:
    """Not even where a zip file has no checksum of its own, or says how it is packed."""
    path = save_recording(tmp_path / "r.safetensors", [walk(1)])
    with flannel_pl.open_recording(path) as recording:
        measures = measure_run(recording, 0)
    kept = tmp_path / "run_0.npz"
    cache.save_run(kept, "mark", measures)
    content = kept.read_bytes()
    draw = np.random.default_rng(0)
    for place in (*range(0, 40), *draw.integers(len(content), size=400), *range(-100, 0)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        kept.write_bytes(damaged)
        assert cache.load_run(kept, "mark") is None, place


def test_distances_come_back(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1), walk(2), walk(3)])
    with flannel_pl.open_recording(path) as recording:
        pairs = measure_divergence(list(recording), {"all": np.arange(9)})
    kept = tmp_path / "pairs.npz"
    cache.save_divergence(kept, ["a", "b", "c"], pairs)
    again = cache.load_divergence(kept, ["a", "b", "c"])
    assert again is not None
    assert again["all"].pairs == pairs["all"].pairs
    np.testing.assert_array_equal(again["all"].distance_PR, pairs["all"].distance_PR)
    np.testing.assert_array_equal(again["all"].evolution_NR, pairs["all"].evolution_NR)
    assert cache.load_divergence(kept, ["a", "b"]) is None


def test_another_bit_another_fingerprint(tmp_path: Path) -> None:
    """With checksums the rows decide, wherever the file lies and whenever it was written."""
    marks = []
    for name in ("first", "again"):
        with flannel_pl.open_recording(make_experiment(tmp_path / name, num_runs=2).folder) as recording:
            marks.append([cache.fingerprint(recording, index) for index in recording.runs])
    assert marks[0] == marks[1]
    assert marks[0][0] != marks[0][1]


def test_without_checksums_a_newer_file_is_another(tmp_path: Path) -> None:
    path = save_recording(tmp_path / "r.safetensors", [walk(1)])
    marks = []
    for time_ns in (1, 2):
        os.utime(path, ns=(time_ns, time_ns))
        with flannel_pl.open_recording(path) as recording:
            marks.append(cache.fingerprint(recording, 0))
    assert marks[0] != marks[1]
