"""A training has the same rows, bit for bit, whoever trains it; and they are those of a loop of nobody's."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flannel_pl
from flannel_pl.recording.checking.verify import verify
from tests.adapters.three_trainers import (
    CASES,
    TOKEN_SETS,
    Case,
    in_a_loop,
    in_lightning,
    in_transformers,
    plain_rows,
)

ADAMS = {"exp_avg": "momentum", "exp_avg_sq": "variance"}


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    with flannel_pl.open_recording(folder) as recording:
        run = recording.run(0)
        return {name.replace("net.", ""): np.asarray(run.tensor(name)[:]) for name in run.names}


@pytest.mark.parametrize("name", CASES)
def test_the_rows_are_the_same(tmp_path: Path, name: str) -> None:
    assert_the_rows_are_the_same(CASES[name], tmp_path)


def assert_the_rows_are_the_same(case: Case, tmp_path: Path) -> None:
    in_lightning(case, tmp_path / "lightning")
    in_a_loop(case, tmp_path / "loop")
    found = {"loop": columns_of(tmp_path / "loop")}
    # transformers clips no values, and has float16 on devices only.
    if not (case.clip_by_value or (case.half and case.device == "cpu")):
        in_transformers(case, tmp_path / "hf")
        found["hf"] = columns_of(tmp_path / "hf")
    expected = columns_of(tmp_path / "lightning")
    for who, columns in found.items():
        assert verify(tmp_path / who).ok
        # What may skip a step, only Lightning knows beforehand; a loop without a scaler cannot.
        assert columns.keys() == expected.keys(), who
        for column in expected.keys() - {"checksums"}:
            got, wanted = columns[column], expected[column]
            if case.half and (who, column) == ("hf", "logits"):
                wanted = wanted.astype(np.float32)  # as which accelerate returns everything
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), (who, column)
            if column.startswith("losses") and case.accumulate == 3:
                # A third of each is rounded before they are added, or their sum is divided.
                last_bit = 2.0**-7 if column == "losses" else 2.0**-22
                difference = np.abs(got[1:].astype(np.float64) / wanted[1:].astype(np.float64) - 1)
                assert difference.max() <= last_bit, (who, column)
            else:
                assert got.tobytes() == wanted.tobytes(), (who, column)


@pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "accumulated", "some tokens", "clipped by value"])
def test_the_rows_are_those_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    assert_the_rows_are_a_plain_loops(CASES[name], tmp_path)


def assert_the_rows_are_a_plain_loops(case: Case, tmp_path: Path, around: Any = nullcontext) -> None:
    in_a_loop(case, tmp_path, around)
    columns = columns_of(tmp_path)
    ids = TOKEN_SETS["rare"] if "tokens" in case.options else slice(None)
    for number, row in enumerate(plain_rows(case), start=1):
        for key, value in row.items():
            if key == "loss":
                np.testing.assert_allclose(columns["losses_f32"][number], value, rtol=1e-6)
            else:
                value = value[ids] if value.ndim else value
                assert columns[ADAMS.get(key, key)][number].tobytes() == value.numpy().tobytes(), key
    assert number == len(columns["losses"]) - 1
    assert torch.isnan(torch.tensor(columns["losses_f32"][0]))
