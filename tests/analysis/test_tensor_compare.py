"""One tensor of two recordings, against loops over every element."""

import bisect
import itertools
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flannel_pl import open_recording
from flannel_pl.analysis.comparing import tensor_compare
from flannel_pl.analysis.comparing.tensor_compare import (
    Alignment,
    TensorComparison,
    compare_tensor,
)
from flannel_pl.metrics.lattice import widen
from flannel_pl.metrics.ulps import ulp_distance
from tests.analysis.compare_samples import Array, copy, flip, put, read, record, write

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ALL_16_BITS = np.arange(2**16, dtype=np.uint16)


def compared(
    a: Path, b: Path, name: str = "embeddings", alignment: Alignment | None = None
) -> TensorComparison:
    with open_recording(a) as in_a, open_recording(b) as in_b:
        rows = np.arange(in_a.run(0).num_rows)
        a_tensor, b_tensor = (recording.run(0).tensor(name) for recording in (in_a, in_b))
        return compare_tensor(name, a_tensor, b_tensor, alignment or Alignment(rows, rows, rows))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal recordings of random bits."""
    a = record(tmp_path / "run_0")
    return a, copy(a, "b")


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=str)
def test_ulp_distance_counts_the_floats_between(dtype: "np.dtype[np.generic]") -> None:
    floats = ALL_16_BITS.view(dtype)
    floats = floats[~np.isnan(floats.astype(np.float32))]
    ascending = sorted({float(x) for x in floats})  # -0.0 == 0.0: one of them
    assert len(ascending) == len(floats) - 1
    draw = np.random.default_rng(0)
    A, B = draw.choice(floats, 3000), draw.choice(floats, 3000)
    expected = [
        abs(bisect.bisect_left(ascending, float(a)) - bisect.bisect_left(ascending, float(b)))
        for a, b in zip(A, B, strict=True)
    ]
    assert ulp_distance(A, B).tolist() == expected
    assert max(expected) > 2**15


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 1.0, 0),
        (1.0, 1 + 2**-7, 1),
        (1.0, 1 - 2**-8, 1),  # the spacing halves below a power of two
        (1.0, 2.0, 2**7),
        (1.0, 4.0, 2**8),
        (0.5, -0.5, 2 * 126 * 2**7),
        (0.0, -0.0, 0),
        (2.0**-133, -(2.0**-133), 2),
        (math.inf, 3.3895313892515355e38, 1),
        (math.inf, -math.inf, 2 * 255 * 2**7),
    ],
)
def test_ulp_distances_of_bfloat16_that_can_be_counted_by_hand(a: float, b: float, expected: int) -> None:
    pair = np.array([a], BFLOAT16), np.array([b], BFLOAT16)
    assert ulp_distance(*pair).tolist() == ulp_distance(*reversed(pair)).tolist() == [expected]


def test_ulp_distances_of_float32() -> None:
    A = np.array([0.02, -1.0, 0.0, 2**23], np.float32)
    assert ulp_distance(A, np.nextafter(A, np.float32(np.inf))).tolist() == [1, 1, 1, 1]
    A, B = np.array([1.0, -np.inf], np.float32), np.array([2.0, np.inf], np.float32)
    assert ulp_distance(A, B).tolist() == [2**23, 2 * 255 * 2**23]


def assert_like_loops(got: TensorComparison, A: Array, B: Array) -> None:
    """Every field but ULP, which have their own tests, against a loop over all elements."""
    unsigned = f"u{A.dtype.itemsize}"
    places = list(itertools.product(*map(range, A.shape)))
    bits = [(int(A.view(unsigned)[place]), int(B.view(unsigned)[place])) for place in places]
    differing = [place for place, (a, b) in zip(places, bits, strict=True) if a != b]
    assert got.num_elements == len(places)
    assert got.num_differing == len(differing)
    nan = [place for place in differing if math.isnan(A[place]) or math.isnan(B[place])]
    assert got.num_nan == len(nan)
    squares = [0.0] * len(A)
    for place in differing:
        squares[place[0]] += (float(A[place]) - float(B[place])) ** 2
    assert got.distance_R is not None
    np.testing.assert_allclose(got.distance_R, np.sqrt(squares), rtol=1e-12)
    ulps = [int(ulp_distance(A[place].reshape(1), B[place].reshape(1))[0]) for place in differing]
    numbers = [ulp for ulp, place in zip(ulps, differing, strict=True) if place not in nan]
    assert got.max_ulps == (max(numbers, default=None) if differing else 0)
    if not differing:
        assert got.first is None
        return
    first = differing[0]
    assert got.first is not None
    assert (got.first.row_a, got.first.column, got.first.dim) == first
    assert got.first.bits == bits[places.index(first)]
    assert str(got.first.values) == str((A[first].item(), B[first].item()))
    assert got.first.ulps == (None if first in nan else ulps[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("tile", "piece"), [(2**16, 2**22), (50, 300), (1, 1), (7, 2000)])
@pytest.mark.parametrize("kind", ["as they are", "without NaN", "a few"])
def test_random_bits_against_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, dtype: str, tile: int, piece: int, kind: str
) -> None:
    monkeypatch.setattr(tensor_compare, "TILE_ELEMENTS", tile)
    monkeypatch.setattr(tensor_compare, "PIECE_BYTES", piece)
    files = [
        record(tmp_path / name, seed=seed, tensors=["embeddings"], dtypes={"embeddings": dtype}, max_steps=3)
        for seed, name in enumerate("ab")
    ]
    if kind == "a few":
        files[1] = copy(files[0], "few")
        for place in ((1, 29, 3), (2, 0, 0), (2, 17, 1)):
            flip(files[1], "embeddings", place, bit=3)
    if kind == "without NaN":
        for path in files:
            values = read(path, "embeddings").copy()
            values[~np.isfinite(widen(values))] = 1.5
            write(path, "embeddings", values)
    a, b = files
    assert_like_loops(compared(a, b), read(a, "embeddings"), read(b, "embeddings"))


def test_equal_bits_are_equal_whatever_they_are(pair: tuple[Path, Path]) -> None:
    assert np.isnan(read(pair[0], "embeddings").astype(np.float32)).any()
    got = compared(*pair)
    assert got.equal
    assert (got.num_elements, got.num_differing, got.max_ulps, got.first) == (7 * 30 * 4, 0, 0, None)
    assert got.distance_R is not None
    assert got.distance_R.tolist() == [0.0] * 7


def test_zeros_of_either_sign_differ_by_no_distance(pair: tuple[Path, Path]) -> None:
    put(pair[0], "momentum", (4, 8, 2), 0.0)
    put(pair[1], "momentum", (4, 8, 2), -0.0)
    got = compared(*pair, name="momentum")
    assert not got.equal
    assert (got.num_differing, got.max_ulps) == (1, 0)
    assert got.first is not None
    assert (got.first.bits, got.first.ulps) == ((0, 0x8000), 0)
    assert not np.any(got.distance_R)


def test_a_nan_on_one_side_has_no_distance(pair: tuple[Path, Path]) -> None:
    put(pair[0], "grads", (3, 1, 0), 1.0)
    put(pair[1], "grads", (3, 1, 0), math.nan)
    got = compared(*pair, name="grads")
    assert (got.num_differing, got.num_nan, got.max_ulps) == (1, 1, None)
    assert got.first is not None
    assert got.first.ulps is None
    assert got.distance_R is not None
    assert np.flatnonzero(np.isnan(got.distance_R)).tolist() == [3]


def test_another_nan_and_another_infinity_differ(pair: tuple[Path, Path]) -> None:
    for path, nan, infinity in zip(pair, (0x7FC0, 0x7FC1), (math.inf, -math.inf), strict=True):
        put(path, "logits", (2, 5), np.array([nan], np.uint16).view(BFLOAT16)[0])
        put(path, "logits", (5, 5), infinity)
    got = compared(*pair, name="logits")
    assert (got.num_differing, got.num_nan, got.max_ulps) == (2, 1, 2 * 255 * 2**7)
    assert got.distance_R is not None
    assert np.isnan(got.distance_R[2])
    assert got.distance_R[5] == math.inf


def test_tiny_distances_do_not_vanish(pair: tuple[Path, Path]) -> None:
    for path, value in zip(pair, (2.0**-100, 2.0**-101), strict=True):
        put(path, "variance", (1, 0, 0), value)
    got = compared(*pair, name="variance")
    assert got.distance_R is not None
    assert got.distance_R[1] == 2.0**-101


def test_integers_are_only_equal_or_not(pair: tuple[Path, Path]) -> None:
    flip(pair[1], "checksums", (6, 2), bit=63)
    got = compared(*pair, name="checksums")
    assert (got.num_differing, got.max_ulps, got.distance_R) == (1, None, None)
    assert got.first is not None
    assert (got.first.row_a, got.first.column, got.first.dim, got.first.ulps) == (6, 2, None, None)
    assert abs(got.first.values[0] - got.first.values[1]) == 2**63


def test_other_dtypes_are_compared_as_float32(tmp_path: Path) -> None:
    narrow = record(tmp_path / "a")
    wide = record(tmp_path / "b", dtypes={"embeddings": "float32"})
    values = np.random.default_rng(0).normal(size=(7, 30, 4)).astype(BFLOAT16)
    write(narrow, "embeddings", values)
    write(wide, "embeddings", values.astype(np.float32))
    got = compared(narrow, wide)
    assert (got.dtypes, got.num_differing, got.left_out) == (("bfloat16", "float32"), 0, "")
    assert not got.equal
    put(wide, "embeddings", (2, 3, 1), float(np.nextafter(np.float32(values[2, 3, 1]), np.float32(0))))
    got = compared(narrow, wide)
    assert got.first is not None
    assert (got.first.row_a, got.first.column, got.first.dim, got.first.ulps) == (2, 3, 1, 1)


def test_rows_of_another_shape_are_left_out(tmp_path: Path) -> None:
    got = compared(record(tmp_path / "a"), record(tmp_path / "b", hidden_dim=5))
    assert got.left_out == "a row has the shape (30, 4) in A and (30, 5) in B"
    assert not got.equal
    assert (got.num_elements, got.distance_R) == (0, None)


def test_rows_and_columns_are_those_of_the_alignment(tmp_path: Path) -> None:
    a, b = (record(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    rows_a, rows_b, columns_a, columns_b = (
        np.array(x) for x in ([0, 2, 5], [1, 2, 3], [4, 9, 28], [0, 11, 29])
    )
    chosen = Alignment(np.array([10, 20, 30]), rows_a, rows_b, columns_a, columns_b, labels_T=[7, 8, 9])
    got = compared(a, b, alignment=chosen)
    A, B = (
        read(a, "embeddings")[rows_a][:, columns_a],
        read(b, "embeddings")[rows_b][:, columns_b],
    )
    assert got.num_differing == np.count_nonzero(A.view(np.uint16) != B.view(np.uint16))
    assert got.first is not None
    assert (got.first.step, got.first.row_a, got.first.row_b, got.first.column) == (10, 0, 1, 7)


def test_progress_is_every_byte_of_both(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_compare, "PIECE_BYTES", 500)
    seen: list[int] = []
    with open_recording(pair[0]) as a, open_recording(pair[1]) as b:
        rows = np.arange(7)
        grads = (a.run(0).grads, b.run(0).grads)
        compare_tensor("grads", *grads, Alignment(rows, rows, rows), advance=seen.append)
    assert seen == [2 * 2 * 240] * 3 + [2 * 240]
