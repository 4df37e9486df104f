"""What is recorded of a model without tokens: of parameters of any shape, with or without a first one."""

from pathlib import Path
from typing import Any

import pytest
import torch

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.quantities import TokenProbability, TopTokens
from flannel_pl.recording.checking.verify import verify
from tests.quantities.test_parameters import STEPS, Module, bytes_of, plain_rows
from tests.training.test_recorder import fit


def names_in(folder: Path) -> set[str]:
    with flannel_pl.open_recording(folder) as recording:
        return set(recording.run(0).names)


@pytest.mark.parametrize("name", ["net.scale", "net.norm.weight", "net.conv.weight"])
def test_the_first_parameter_may_have_any_shape(tmp_path: Path, name: str) -> None:
    fit(StepRecorder(tmp_path, name, tensors=["embeddings", "grads", "losses"]), steps=STEPS, module=Module())
    assert verify(tmp_path).ok
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        for number, row in enumerate(plain_rows(Module()), start=1):
            assert run.embeddings[number].tobytes() == row[f"{name}/values"]
            assert run.grads[number].tobytes() == row[f"{name}/grads"]
        assert all(dim.startswith("axis") for dim in run.columns["embeddings"].dims)


def test_without_a_first_parameter_all_have_their_own_names(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path, parameters="all"), steps=STEPS, module=Module())
    assert verify(tmp_path).ok
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        for number, row in enumerate(plain_rows(Module()), start=1):
            there = {
                name: value for name, value in row.items() if "running" not in name and "num_b" not in name
            }
            assert {name: run.tensor(name)[number].tobytes() for name in there} == there
        assert "V" not in run.columns["net.table.weight/values"].dims
        assert run.tensor("net.scale/values")[0].tobytes() == bytes_of(Module().net.scale)
        assert not {"embeddings", "grads", "momentum", "logits"} & set(run.names)


def test_losses_alone_and_every_parameter(tmp_path: Path) -> None:
    fit(
        StepRecorder(tmp_path, tensors="losses", parameters="*norm*"), steps=2, module=Module(torch.optim.SGD)
    )
    further = {name for name in names_in(tmp_path) if "/" in name}
    assert further == {
        f"net.norm.{name}/values"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_a_first_parameter_of_which_nothing_is_recorded_is_among_the_others(tmp_path: Path) -> None:
    fit(
        StepRecorder(tmp_path, "net.table.weight", tensors="losses", parameters="all"),
        steps=2,
        module=Module(),
    )
    assert "net.table.weight/values" in names_in(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {},
            r"^parameter names none, and parameters no other, .* has net.alias, .*Name one, or record every",
        ),
        ({"parameters": "all", "tokens": "dead"}, "need a parameter with a row for each token; name it in"),
        (
            {"parameters": "all", "tensors": ["logits"]},
            "need a parameter with a row for each token; name it in",
        ),
        (
            {"parameter": "net.scale", "tensors": ["logits"]},
            r"net.scale has shape \(\), expected two dimensions",
        ),
        (
            {"parameters": "all", "quantities": [TopTokens()]},
            "TopTokens needs a recorded parameter with a row",
        ),
        (
            {"parameter": "net.scale", "tensors": ["losses"], "quantities": [TokenProbability(None)]},
            "TokenProbability per token needs a recorded parameter with a row for each token",
        ),
    ],
)
def test_what_needs_tokens_is_refused_without_them(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(StepRecorder(tmp_path / "x", **settings), steps=2, module=Module())
    assert not list(tmp_path.rglob("recording.*"))


@pytest.mark.parametrize(
    ("name", "place"), [("net.scale", "(row 1): "), ("net.conv.weight", "element [0, 0, 0, 0]")]
)
def test_two_of_any_shape_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        recorder = StepRecorder(tmp_path / kind.__name__, name, tensors=["embeddings", "losses"])
        fit(recorder, steps=2, module=Module(kind))
    one, other = (str(tmp_path / kind) for kind in ("AdamW", "SGD"))
    assert main(["compare", one, one]) == 0
    assert main(["compare", one, other]) == 1
    said = capsys.readouterr().out
    assert place in said
    assert "token" not in said
