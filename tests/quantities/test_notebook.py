"""What quantities declare is what files of schema 1 had, and what docs/format.md promises."""

import re
from pathlib import Path

import pytest
import torch

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.columns import declared_columns, schema_of
from flannel_pl.quantities.notebook import quantities_of
from flannel_pl.quantities.parameters import OPTIMIZER_STATE, ParameterValues, of_first
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.formats.schema import RECORDABLE
from tests.schemas import build_schema

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
SUBJECT = Subject(
    torch.empty((30, 4), dtype=torch.bfloat16, device="meta"),
    "wte",
    {"logits": torch.bfloat16},
    may_skip=True,
)
ALL = quantities_of(RECORDABLE, of_first(OPTIMIZER_STATE))


def test_the_six_are_the_columns_that_files_always_had() -> None:
    declared = declared_columns(ALL, SUBJECT)
    of_quantities = schema_of(
        declared, dtypes={}, num_token_ids=None, max_steps=6, every_n_steps=1, own_dtypes={}
    )
    of_names = build_schema(
        tensors=RECORDABLE,
        dtypes={},
        num_tokens=30,
        hidden_dim=4,
        max_steps=6,
        every_n_steps=1,
        skippable=True,
        parameter="wte",
    )
    assert of_quantities == of_names


def test_the_page_has_their_shapes_and_first_rows() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \((.*?)\) \| \w+ \| .*? \| (.*?) \|$", PAGE, re.MULTILINE)
    page = {name: (axes.split(", ")[1:], row0) for name, axes, row0 in rows}
    for name, (_, column) in declared_columns(
        quantities_of(RECORDABLE, of_first(OPTIMIZER_STATE)), SUBJECT
    ).items():
        axes, row0 = page[name]
        assert axes == list(column.dims)
        words = {"0": "zero", "false": "zero", "NaN": "nan", "initial embedding": "initial"}
        assert words[row0] == column.row0, name


def test_two_that_declare_the_same_column_are_refused() -> None:
    with pytest.raises(UserError, match="ParameterValues and ParameterValues both declare a column emb"):
        declared_columns([ParameterValues("embeddings"), ParameterValues("embeddings")], SUBJECT)
