"""Quantities from the command line: planned, recorded for every run, gathered, shown."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.models.tied_gpt2 import TiedGPT2
from flannel_pl.quantities import Column, LogitsAt, Subject
from flannel_pl.recording.checking.verify import verify
from tests.conftest import SMALL_VOCAB_SIZE, SmallData

QUANTITIES = [
    "flannel_pl.quantities.HiddenMean",
    {"class_path": "flannel_pl.quantities.TokenProbability", "init_args": {"of": "dead"}},
    {"class_path": "flannel_pl.quantities.TopTokens", "init_args": {"k": 4}},
    "flannel_pl.quantities.GradientNorms",
    {"class_path": "flannel_pl.quantities.LogitsAt", "init_args": {"places": [[0, -1], [2, 3]]}},
    {"class_path": "tests.quantities.own.Batches", "init_args": {"factor": 2}},
]


def words(verb: str, data: SmallData, folder: Path, *more: str) -> list[str]:
    place = ["--experiment.name", "x", "--experiment.output_dir", str(folder), "--trainer.max_steps", "4"]
    quantities = ["--recorder.quantities", json.dumps(QUANTITIES)]
    return [verb, *data.arguments, *place, *quantities, *more]


def test_two_runs(small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--experiment.seeds", "42..43")
    assert main(words("plan", small_data, tmp_path, *more)) == 0
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert verify(tmp_path / "x").ok
    capsys.readouterr()
    assert main(["info", str(tmp_path / "x")]) == 0
    said = capsys.readouterr().out
    assert "mean of gpt2.transformer.ln_f over batch and positions" in said
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        assert len(recording) == 2
        for run in recording:
            assert run.hidden_mean.shape == (5, 16)
            assert run.token_probability.shape == (5, SMALL_VOCAB_SIZE)
            np.testing.assert_allclose(run.token_probability[1:].sum(axis=1), 1, rtol=1e-5)
            dead = recording.masks["dead_indices"]
            of_dead = run.token_probability[1:][:, dead].sum(axis=1)
            np.testing.assert_allclose(run.tensor("token_probability/dead")[1:], of_dead, rtol=1e-5)
            assert run.logits_at.shape == (5, 2, SMALL_VOCAB_SIZE)
            assert run.logits_at[1:, 0].tobytes() == run.logits[1:].tobytes()
            assert np.isnan(run.logits_at[0].astype(np.float32)).all()
            assert run.seen[:].tolist() == [2 * 4 * 16 * step for step in range(5)]
            assert run.columns["gradient_norms"].labels["parameter"][0] == "gpt2.transformer.wte.weight"
    assert main(["compare", f"{tmp_path}/x", f"{tmp_path}/x"]) == 0


def test_the_probability_of_the_pieces_is_that_of_all_logits(small_data: SmallData, tmp_path: Path) -> None:
    """Under autocast the loss comes in pieces; beside it the model's own logits, in float64."""
    seen: list[Any] = []
    original = TiedGPT2.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        publish, self.publish = self.publish, None
        with torch.no_grad():
            seen.append(self.gpt2(input_ids=batch["input_ids"]).logits)
        self.publish = publish
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiedGPT2, "training_step", step)
        assert main(words("fit", small_data, tmp_path)) == 0
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        for row, logits in enumerate(seen, start=1):
            other = torch.from_numpy(recording.run(0).logits_at[row, 1].astype(np.float32))
            assert torch.equal(other, logits[2, 3].float())
            expected = logits.double().softmax(dim=-1).flatten(0, 1).mean(dim=0).numpy()
            np.testing.assert_allclose(recording.run(0).token_probability[row], expected, rtol=1e-4)


class Positions(LogitsAt):
    """Logits of the model's own stream, of a size that nobody is told before."""

    def columns(self, subject: Subject) -> list[Column]:
        return [dataclasses.replace(column, like=None) for column in super().columns(subject)]


def test_a_size_that_only_the_first_step_tells(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"class_path": "tests.quantities.test_cli.Positions", "init_args": {"places": [[0, -1]]}}]
    more = ("--recorder.quantities", json.dumps(given), "--experiment.seeds", "42..43")
    assert main(words("plan", small_data, tmp_path, *more)) == 0
    assert "at least    the first step tells how large logits_at is" in capsys.readouterr().out
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert verify(tmp_path / "x").ok
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        for run in recording:
            assert run.logits_at[1:, 0].tobytes() == run.logits[1:].tobytes()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[flannel_pl.quantities.HiddenMeen]", "HiddenMeen"),
        ("[{class_path: flannel_pl.quantities.TopTokens, init_args: {kk: 3}}]", "kk"),
        ("[{class_path: flannel_pl.quantities.TopTokens, init_args: {k: 3000}}]", "TopTokens: 3000 of 100"),
        ("[pathlib.Path]", "recorder.quantities"),
        ("[{class_path: flannel_pl.quantities.LogitsAt, init_args: {places: []}}]", "error: LogitsAt has"),
        (
            "[{class_path: tests.quantities.own.Unmade, init_args: {}}]",
            "cannot be made: ZeroDivisionError: di",
        ),
    ],
)
def test_a_mistake_is_refused_before_there_is_a_folder(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, sentence: str
) -> None:
    assert main([*words("fit", small_data, tmp_path), "--recorder.quantities", value]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_an_alias_that_hides_behind_a_tensor_is_refused(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for alias in ("grads", "grad_norms"):
        parameters = f"{{embeddings: gpt2.transformer.wte.weight, {alias}: gpt2.transformer.wpe.weight}}"
        assert main([*words("plan", small_data, tmp_path), "--recorder.parameters", parameters]) == 2
        sentence = f"calls a parameter {alias!r}, which is the name of a tensor of the first; give it another"
        assert sentence in capsys.readouterr().err


def test_columns_of_tokens_are_compared_token_by_token(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("--recorder.tokens", "dead", "--experiment.name", "some")
    assert main(words("fit", small_data, tmp_path)) == 0
    assert main(words("fit", small_data, tmp_path, *some)) == 0
    capsys.readouterr()
    assert main(["compare", f"{tmp_path}/x", f"{tmp_path}/some"]) == 1  # not all tokens are in both
    said = capsys.readouterr().out
    with flannel_pl.open_recording(tmp_path / "x") as a, flannel_pl.open_recording(tmp_path / "some") as b:
        dead = a.masks["dead_indices"]
        whole, part = a.run(0).token_probability[:][:, dead], b.run(0).token_probability[:]
        assert whole.tobytes() == part.tobytes()
    lines = [line for line in said.splitlines() if "token_probability" in line]
    assert lines
    assert all("equal" in line for line in lines), said


def test_another_list_is_another_experiment(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("fit", small_data, tmp_path)) == 0
    assert main([*words("fit", small_data, tmp_path), "--recorder.quantities", "null"]) == 2
    assert "recorder.quantities" in capsys.readouterr().err
