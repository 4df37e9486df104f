"""A row takes each declared value once, of the shape and type that was declared."""

from typing import Any

import pytest
import torch

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.row import FilledRow
from flannel_pl.quantities.quantity import Column
from flannel_pl.recording.writing.ring import RowBuffer

COLUMNS = {
    "weights": Column("weights", ("V", "D"), like=torch.empty(5, 2), row0="initial"),
    "across": Column("across", ("D", "V"), like=torch.empty(2, 5), row0="zero"),
    "loss": Column("loss", dtype=torch.bfloat16),
    "steps": Column("steps", dtype=torch.int64, row0="zero"),
}


def make_row(**changes: Any) -> tuple[FilledRow, dict[str, torch.Tensor]]:
    tensors = {
        "weights": torch.full((2, 2), 7.0),
        "across": torch.full((2, 2), 7.0),
        "loss": torch.tensor(7.0, dtype=torch.bfloat16),
        "steps": torch.tensor(7),
    }
    arguments: dict[str, Any] = {"token_ids": torch.tensor([1, 4]), "rounded": (), "device": None}
    return FilledRow(RowBuffer(tensors, {}, {}), COLUMNS, **(arguments | changes)), tensors


def test_recorded_tokens_are_picked_along_their_axis() -> None:
    row, tensors = make_row()
    values = torch.arange(10.0).view(5, 2)
    row["weights"], row["across"] = values.requires_grad_(), values.T
    row["loss"], row["steps"] = torch.tensor(1 / 3), 3
    row.end()
    assert tensors["weights"].tolist() == [[2, 3], [8, 9]]
    assert tensors["across"].tolist() == [[2, 8], [3, 9]]
    assert tensors["loss"] == torch.tensor(1 / 3, dtype=torch.bfloat16)
    assert tensors["steps"] == 3


def test_first_row() -> None:
    row, tensors = make_row()
    row.begin()
    assert tensors["across"].tolist() == [[0, 0], [0, 0]]
    assert tensors["loss"].isnan()
    assert tensors["steps"] == 0
    with pytest.raises(UserError, match=r"^weights was declared, and not filled"):
        row.end()
    with pytest.raises(UserError, match="loss is filled twice"):
        row["loss"] = 1.0
    row["weights"] = torch.ones(5, 2)
    row.end()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("nonsense", 1.0, "nonsense was not declared by any quantity; a quantity fills each column"),
        ("weights", torch.zeros(5, 3), r"weights was given a value of shape \(2, 3\), expected \(2, 2\)"),
        ("loss", torch.zeros(1), r"loss was given a value of shape \(1,\), expected \(\)"),
        ("weights", torch.zeros(5, 2).double(), "weights is of type float64, and the recording has float32"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: Any, sentence: str) -> None:
    row, _ = make_row()
    with pytest.raises(UserError, match=sentence):
        row[name] = value


def test_what_is_to_be_rounded_is() -> None:
    row, tensors = make_row(rounded=("weights",), token_ids=None)
    tensors["weights"].resize_(5, 2)
    row["weights"] = torch.full((5, 2), 1 / 3, dtype=torch.float64)
    assert tensors["weights"][0, 0] == torch.tensor(1 / 3)
