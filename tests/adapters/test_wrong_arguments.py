"""Arguments of another kind than expected, in each of the three trainers: said at once, in a sentence."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

import flannel_pl
from flannel_pl.errors import UserError
from flannel_pl.quantities import Column, Quantity
from tests.adapters.three_trainers import Case, Net, batches, trainer_of
from tests.training.test_recorder import fit

E: dict[str, Any] = {"parameters": {"E": "table.weight"}}


class Columnless(Quantity):
    pass


class OneColumn(Quantity):
    @override
    def columns(self, subject: Any) -> Any:
        return Column("one")


class Failing(Quantity):
    @override
    def columns(self, subject: Any) -> Any:
        raise KeyError("mine")


def in_a_loop(folder: Any, **options: Any) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with flannel_pl.Recorder(folder, net, optimizer, **{**E, **options}) as recorder:
        for batch in batches(Case(steps=2)):
            loss = net(**batch)["loss"]
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.after_step(loss=loss)


def in_the_trainer(folder: Any, **options: Any) -> None:
    trainer = trainer_of(Case(steps=2), Path("out"))
    flannel_pl.hf.record(trainer, folder, **{**E, **options})
    trainer.train()


def in_lightning(folder: Any, **options: Any) -> None:
    fit(flannel_pl.StepRecorder(folder, "table.weight", **options), steps=2)


EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    ({"quantities": [Columnless()]}, r"Columnless declares no columns; it needs a method columns\(self, sub"),
    ({"quantities": [OneColumn()]}, r"OneColumn\.columns returned Column\(.*expected a list of Column"),
    ({"quantities": [Failing()]}, r"the quantity .*Failing failed with KeyError: 'mine' \(.*, line \d+\)"),
    ({"quantities": Failing}, r"quantities has <class .*expected objects.*make one of it, Failing\(\)"),
    ({"tensors": [object]}, r"tensors is \[<class 'object'>\], expected a list of names"),
    ({"tensors": 3}, r"tensors is 3, expected a list of names"),
    ({"dtypes": ["float32"]}, r"dtypes is \['float32'\], expected a dict from column to type"),
    ({"dtypes": {"grads": torch.int8}}, r"dtypes has 'int8' for grads, expected one of bfloat16"),
    ({"every_n_steps": 1.5}, r"every_n_steps is 1.5, expected a whole number"),
    ({"every_n_steps": None}, r"every_n_steps is None, expected a whole number"),
    ({"overwrite": "false"}, r"overwrite is 'false', expected True or False"),
    ({"tokens": [1, 2]}, r"tokens is \[1, 2\], expected all, the name of a token set.*token_sets=\{"),
    (
        {"parameters": {"E": nn.Parameter(torch.ones(1))}},
        r"parameters is 'E' for a Parameter, expected an al",
    ),
    ({"folder": 3}, r"the folder to record into is of type int, expected a path"),
]


@pytest.mark.parametrize("train", [in_a_loop, in_the_trainer, in_lightning])
@pytest.mark.parametrize(("options", "sentence"), EVERYWHERE)
def test_in_every_trainer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., None],
    options: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        train(**{"folder": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("recording.*"))


@pytest.mark.parametrize("train", [in_a_loop, in_the_trainer, in_lightning])
@pytest.mark.parametrize("folder", ["x", "x/run_0", "x/run_7"])
def test_not_into_the_folder_of_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., None], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "experiment.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"x is the folder of an experiment that flannel-pl fit has"):
            train(folder, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["experiment.json"]
    train("x/mine")  # beside its files there is room
    assert (tmp_path / "x" / "mine" / "recording.safetensors").exists()


def test_types_of_torch_are_types(tmp_path: Path) -> None:
    in_a_loop(tmp_path / "a", dtypes={"grads": torch.bfloat16})
    with flannel_pl.open_recording(tmp_path / "a") as recording:
        assert recording.run(0).tensor("grads").dtype == "bfloat16"


def swapped(folder: Path) -> None:
    flannel_pl.hf.record(folder, trainer_of(Case(), folder / "out"), **E)  # type: ignore[arg-type]


def loaded(state: Any) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        net = Net()
        recorder = flannel_pl.Recorder(folder, net, torch.optim.SGD(net.parameters(), lr=0.1), **E)
        recorder.load_state_dict(state)

    return load


ONE_TRAINER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "swapped": (swapped, r"trainer is of type \w+Path, expected a transformers\.Trainer: record\(trainer, "),
    "a dict for one parameter": (
        lambda folder: flannel_pl.StepRecorder(folder, E["parameters"]),
        r"parameter is of type dict, expected its name as in .*; several are parameters=\{\.\.\.\}",
    ),
    "a parameter": (
        lambda folder: flannel_pl.StepRecorder(folder, Net().table.weight),  # type: ignore[arg-type]
        r"parameter is of type Parameter, expected its name as in named_parameters\(\), e\.g\. \"emb",
    ),
    "live": (
        lambda folder: flannel_pl.StepRecorder(folder, "table.weight", live=[object()]),  # type: ignore[list-item]
        r"live is \[<object .*\], expected a list of names",
    ),
    "checkpoints": (
        lambda folder: flannel_pl.StepRecorder(folder, "table.weight", checkpoint_every="2"),  # type: ignore[arg-type]
        r"checkpoint_every is '2', expected a whole number",
    ),
    "a step of a state": (loaded({"step": 2.5}), r"the step of a state is 2\.5, expected a whole number"),
    "scaler": (
        lambda folder: in_a_loop(folder, scaler=True),
        r"scaler is True, expected a torch\.amp\.GradScaler",
    ),
    "no such option": (
        lambda folder: in_a_loop(folder, token_set={}),
        r"'token_set' is no option of a recorder; did you mean token_sets\?",
    ),
    "no such option at all": (
        lambda folder: in_the_trainer(folder, x=1),
        r"'x' is no option of a recorder; there are parameters, tensors, ",
    ),
    "no module": (
        lambda folder: flannel_pl.Recorder(
            folder,
            torch.optim.SGD(Net().parameters(), lr=0.1),  # type: ignore[arg-type]
            Net(),  # type: ignore[arg-type]
            **E,
        ),
        r"optimizer is Net\(",
    ),
    "no state": (loaded(None), r"is given a state of NoneType, expected what its state_dict had returned"),
    "another state": (loaded({"a": 1}), r"is given a state of a, expected what its state_dict had returned"),
    "an empty state": (loaded({}), r"is given a state of nothing, expected what its state_dict had ret"),
}


@pytest.mark.parametrize("kind", ONE_TRAINER)
def test_in_one_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    call, sentence = ONE_TRAINER[kind]
    with pytest.raises(UserError, match=sentence):
        call(tmp_path / "run")


@pytest.mark.parametrize("train", [in_a_loop, in_the_trainer])
def test_who_gave_what_is_said_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    whose = {in_a_loop: "the recorder was given none; give it logits=", in_the_trainer: "the model returned"}
    monkeypatch.setattr(Net, "forward", without_logits(Net.forward))
    with pytest.raises(UserError, match=f"^tensors has 'logits', but {whose[train]}"):
        train(tmp_path / "run", tensors=["embeddings", "logits"])


def without_logits(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)  # whose signature the Trainer looks at
    def called(net: Net, *arguments: Any, **named: Any) -> Any:
        return {"loss": forward(net, *arguments, **named)["loss"]}

    return called


def test_each_recorder_opens_what_is_there(tmp_path: Path) -> None:
    recorder = flannel_pl.StepRecorder(tmp_path / "a", "table.weight")
    fit(recorder, steps=3)
    with recorder.open() as recording:
        assert recording.run(0).num_rows == 4
