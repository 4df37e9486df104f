"""Anybody's model and data, by class_path: read, refused, recorded, and gone on with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.events import read_events
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.attempts import environment_changes
from flannel_pl.training.cli import parse_config, resolve, to_yaml
from tests.conftest import SmallData
from tests.quantities import own
from tests.training import lab
from tests.training.test_resume import StopAfter

NET = ["--model", "tests.training.lab.Net", "--data", "tests.training.lab.Data"]
ALL = ["--recorder.parameters", "all"]


def words(folder: Path, *more: str, steps: int = 6) -> list[str]:
    place = ["--experiment.name", "x", "--experiment.output_dir", str(folder), "--trainer.accelerator", "cpu"]
    place += ["--trainer.log_every_n_steps", "1"]
    return ["--trainer.max_steps", str(steps), "--launch.threads_per_run", "1", *place, *more]


def bits_of(folder: Path) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder) as recording:
        return {
            f"{run.index} {name}": run.tensor(name)[:].tobytes() for run in recording for name in run.names
        }


def test_every_spelling_is_the_same_config(tmp_path: Path) -> None:
    flat = resolve([*NET, "--model.width", "7", "--data.batch_size", "3"])
    assert flat["model"]["class_path"] == "tests.training.lab.Net"
    assert flat["model"]["width"] == 7
    nested = {
        "model": {"class_path": "tests.training.lab.Net", "init_args": {"width": 7}},
        "data": {"class_path": "tests.training.lab.Data", "init_args": {"batch_size": 3}},
    }
    (tmp_path / "nested.yaml").write_text(yaml.dump(nested))
    (tmp_path / "group.yaml").write_text(yaml.dump(nested["model"]))
    (tmp_path / "short.yaml").write_text("model: group.yaml\ndata: tests.training.lab.Data\n")
    small = ["--data.batch_size=3"]
    for spelling in (
        ["--config", str(tmp_path / "nested.yaml")],
        ["--config", str(tmp_path / "short.yaml"), *small],
        ["--model", str(tmp_path / "group.yaml"), *NET[2:], *small],
        ["--model", json.dumps(nested["model"]), *NET[2:], *small],
        ["--model.class_path", NET[1], "--model.init_args.width", "7", *NET[2:], *small],
        [f"--model={NET[1]}", "--model.init_args={width: 7}", *NET[2:], *small],
        ["--config", str(tmp_path / "nested.yaml"), "--model.width", "8", "--model.init_args.width=7"],
    ):
        assert resolve(spelling) == flat, spelling
    run = ResolvedExperiment.from_config(flat).run_config(ResolvedExperiment.from_config(flat).runs[0])
    (tmp_path / "run.yaml").write_text(to_yaml(run.content))
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["model"]["init_args"]["width"] == 7
    again = resolve(["--config", str(tmp_path / "run.yaml")])
    assert again["model"] == flat["model"]
    assert parse_config(again)["model"]["width"] == 7


def test_the_default_classes_by_their_names_are_the_default(tmp_path: Path) -> None:
    plain = resolve(["--model.hidden_dim", "16", "--data.batch_size", "4"])
    assert "class_path" not in plain["model"]
    config = {"model": {"class_path": "flannel_pl.TiedGPT2", "init_args": {"hidden_dim": 16}}}
    (tmp_path / "c.yaml").write_text(yaml.dump(config))
    for spelling in (
        ["--model", "TiedGPT2", "--model.init_args.hidden_dim", "16", "--data", "flannel_pl.FlannelData"],
        ["--config", str(tmp_path / "c.yaml")],
        [
            *NET,
            "--model",
            "flannel_pl.models.tied_gpt2.TiedGPT2",
            "--model.hidden_dim=16",
            "--data=FlannelData",
        ],
    ):
        assert resolve([*spelling, "--data.batch_size", "4"]) == plain, spelling


def test_either_key_is_swept(tmp_path: Path) -> None:
    for key in ("model.width", "model.init_args.width"):
        config = resolve([*NET, "--experiment.sweep", json.dumps({key: [2, 3]})])
        runs = ResolvedExperiment.from_config(config).runs
        assert [run.swept for run in runs] == [{"model.width": 2}, {"model.width": 3}]


def test_classes_are_swept_like_any_key() -> None:
    classes = ["tests.training.lab.Net", "tests.training.lab.Validated"]
    config = resolve([*NET, "--experiment.sweep", json.dumps({"model.class_path": classes})])
    experiment = ResolvedExperiment.from_config(config)
    assert [experiment.run_config(run).model.class_path for run in experiment.runs] == classes


def test_its_arguments_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ([*NET, "--help"], ["--model.help", NET[1]]):
        with pytest.raises(SystemExit):
            resolve(asked)
        said = capsys.readouterr().out
        assert "--model.width" in said
        assert "Of the hidden layer." in said
        assert "--model.hidden_dim" not in said


MODEL, DATA = ["--model", NET[1]], NET[2:]
REFUSED = [
    (
        ["--model", "nowhere.Net"],
        "model.class_path is nowhere.Net, but there is no module nowhere; it is",
    ),
    (["--model", "tests.nowhere.Net"], "tests.nowhere.Net, but there is no module tests.nowhere"),
    (["--model", "tests.training.lab.Nett"], "tests.training.lab has no Nett; did you mean Net?"),
    (["--model", "pathlib.Path"], "expected a class made from lightning.pytorch.LightningModule"),
    (["--model", "tests.training.lab.Data"], "expected a class made from lightning.pytorch.LightningModule"),
    ([*MODEL, "--data", NET[1]], "expected a class made from lightning.pytorch.LightningDataModule"),
    (
        ["--model", "tests.training.lab.NeedsWidth"],
        "NeedsWidth needs model.width; give --model.width ...",
    ),
    ([*MODEL, "--data.batch_size", "100"], "cannot be made: there is nothing to train"),
    ([*MODEL, "--trainer.limit_train_batches", "0"], "trainer.limit_train_batches is 0, which cannot work"),
    ([*MODEL, "--model.widht", "3"], "--model.widht 3; did you mean model.width?"),
    ([*MODEL, "--model", "{class_path: tests.training.lab.Net, init_args: {widht: 3}}"], "mean model.width?"),
    ([*MODEL, "--model.width", "many"], "model.width is many, expected a whole number"),
    (["--model", "tests.training.lab.ByHand"], "ByHand optimizes by hand"),
    (
        ["--model", "tests.training.lab.TwoOptimizers"],
        "TwoOptimizers has several optimizers, but one step",
    ),
    (
        ["--model", "tests.training.lab.NoOptimizer"],
        "NoOptimizer has no optimizer, so nothing would",
    ),
    (["--model", "tests.training.lab.SeveralTimes"], "LBFGS evaluates the gradient several times per step"),
    (["--model", "tests.training.lab.Broken"], "cannot be made: KeyError: 'no such layer' ("),
    (
        [*MODEL, "--recorder.parameters", "{a: net.9.weight}"],
        "'net.9.weight' to record; it has net.0.bias, ",
    ),
    ([*MODEL, "--recorder.parameters", "null"], "the module has net.0.bias, net.0.weight, net.3.bias, net.3"),
    ([*MODEL, "--recorder.tensors", "[logits]"], "need a parameter with a row for each token"),
    ([*MODEL, "--recorder.parameter", "net.0.weight", "--recorder.tensors", "[momentm]"], "momentm"),
    ([*MODEL, "--experiment.sweep", "{model.widht: [1]}"], "cannot be swept; did you mean model.width?"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=[case[1][:40] for case in REFUSED])
def test_what_cannot_be_is_refused_before_there_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], sentence: str
) -> None:
    assert main(["fit", *DATA, *ALL, *given, *words(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert sentence in " ".join(said.split())
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "code", "sentence"),
    [
        (
            "ManyLosses",
            2,
            "this cannot be trained: RuntimeError: grad can be implicitly created only for s",
        ),
        ("Detached", 2, "this cannot be trained: RuntimeError: element 0 of tensors does not require grad"),
        ("Leaves", 1, "training was ended by sys.exit(3), called in "),
    ],
)
def test_what_the_first_step_tells_is_the_models_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, code: int, sentence: str
) -> None:
    given = ["--model", f"tests.training.lab.{model}", *DATA, *ALL, "--experiment.seeds", "1"]
    assert main(["fit", *given, *words(tmp_path)]) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert ("lab.py, line " in said) == (model == "Leaves")
    assert "Traceback" not in said


FILES = {
    "test.py": "class Net: pass\n",
    "broken_lab.py": "import torch\nclass Net(\n",
    "failing_lab.py": "import torch\nraise OSError('no such device')\n",
    "lacking_lab.py": "import no_such_package\n",
}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("test.Net", "test.py is hidden by it; give that file another name"),
        (
            "broken_lab.Net",
            "broken_lab fails with SyntaxError: '(' was never closed (broken_lab.py, line 2)",
        ),
        ("failing_lab.Net", "fails with OSError: no such device (/"),
        ("lacking_lab.Net", "fails with ModuleNotFoundError: No module named 'no_such_package' (/"),
    ],
)
def test_a_file_in_the_working_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(UserError) as refused:
        resolve(["--model", path])
    assert sentence in str(refused.value)
    assert "frozen" not in str(refused.value)


@pytest.mark.parametrize(
    "mode", ["single", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("index", "none"))]
)
def test_runs_are_recorded_and_gathered(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--experiment.sweep", "{model.learning_rate: [0.1, 0.2]}"]
    given = [*NET, *ALL, *words(tmp_path, "--experiment.gather", mode), *sweep]
    assert main(["plan", *given]) == 0
    assert main(["fit", *given]) == 0
    assert main(["fit", *given]) == 0
    assert "finished" in capsys.readouterr().out
    folder = tmp_path / "x"
    assert verify(folder).ok
    assert not (folder / "live_dead_tokens.safetensors").exists()
    with flannel_pl.open_recording(folder) as recording:
        assert len(recording) == 2
        assert recording.run(1).tensor("net.0.weight/values").shape == (7, 4, 2)
        if mode != "none":
            assert np.isnan(recording.scalars["learning_rate"])
            assert not {"n_live", "init_scale", "adam_beta1"} & set(recording.scalars)
            assert recording.metadata["config"]["model"]["class_path"] == NET[1]
        with pytest.raises(UserError, match="no masks"):
            _ = recording.masks
    for verb in ("info", "verify", "report", "status") if mode == "single" else ("info", "status"):
        assert main([verb, str(folder)]) == 0, verb
    assert main(["compare", str(folder), str(folder)]) == 0
    assert main(["fit", *given, "--model.width", "5"]) == 2
    assert "model.width: 4 there, 5 now" in capsys.readouterr().err


def test_each_row_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    steps = 12
    assert main(["fit", *NET, *ALL, *words(tmp_path, "--experiment.seeds", "5", steps=steps)]) == 0
    torch.manual_seed(5)
    module, loader = lab.Net(), lab.Loader(4)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    batches = (batch for _ in range(steps) for batch in loader)
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        run = recording.run(0)
        for row, (x_B2, y_B) in zip(range(1, steps + 1), batches, strict=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module.net(x_B2), y_B)
            loss.backward()  # type: ignore[no-untyped-call]
            assert run.losses_f32[row].tobytes() == loss.detach().numpy().tobytes()
            optimizer.step()
            for name, parameter in module.named_parameters():
                expected: dict[str, Any] = {"values": parameter.detach(), "grads": parameter.grad}
                expected["variance"] = optimizer.state[parameter]["exp_avg_sq"]
                for part, value in expected.items():
                    got = run.tensor(f"{name}/{part}")[row]
                    assert got.tobytes() == value.numpy().tobytes(), (row, name, part)


WHY_ANEW = {
    "Net Data": "",
    "Net Stateless": "tests.training.lab.Stateless keeps no position",
    "Net Unsized": "the loader of tests.training.lab.Unsized has no len",
    "Keeps Data": "is more than tensors and plain values (",
}


@pytest.mark.parametrize(
    "classes",
    [pytest.param(classes, marks=pytest.mark.slow if why else ()) for classes, why in WHY_ANEW.items()],
)
def test_a_run_that_is_killed_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: str
) -> None:
    """Dropout and all: where random numbers stand is in checkpoints."""
    model, data = (f"tests.training.lab.{name}" for name in classes.split())
    given = ["--model", model, "--data", data, *ALL, "--launch.checkpoint_every", "4"]
    given += ["--experiment.seeds", "1..2", "--launch.devices", "1"]
    assert main(["fit", *given, *words(tmp_path / "a", steps=15)]) == 0
    said, killed = capsys.readouterr().out, tmp_path / "killed"
    assert ("begins anew" in said) == bool(WHY_ANEW[classes])
    assert WHY_ANEW[classes] in said
    assert main(["fit", *given, "--model.killed", str(killed), *words(tmp_path / "b", steps=15)]) == 0
    assert killed.exists()
    events = read_events(tmp_path / "b/x/events.jsonl")
    first_rows = [event["first_row"] for event in events if event["event"] == "training_started"]
    assert sorted(first_rows) == ([0, 0, 0] if WHY_ANEW[classes] else [0, 0, 9])
    assert bits_of(tmp_path / "a/x") == bits_of(tmp_path / "b/x")
    assert verify(tmp_path / "b/x").ok


def test_what_an_optimizer_keeps_of_some_axes_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"class_path": "flannel_pl.quantities.OptimizerState"}
    kept = {"row_var": (4, 1), "col_var": (1, 2)}
    quantities = [{**state, "init_args": {"key": key, "column": f"my_{key}"}} for key in kept]
    given = ["--model", "tests.training.lab.Factored", "--data", "tests.training.lab.Data"]
    given += ["--recorder.parameter", "net.0.weight", "--recorder.tensors", "[embeddings, grads]"]
    given += ["--recorder.quantities", json.dumps(quantities), "--launch.checkpoint_every", "3"]
    seed = ["--experiment.seeds", "5"]
    assert main(["fit", *given, *words(tmp_path / "calm", *seed, steps=12)]) == 0
    StopAfter(monkeypatch)(7)
    assert main(["fit", *given, *words(tmp_path / "stopped", *seed, steps=12)]) == 143
    monkeypatch.undo()
    assert main(["fit", *given, *words(tmp_path / "stopped", *seed, steps=12)]) == 0
    assert bits_of(tmp_path / "calm/x") == bits_of(tmp_path / "stopped/x")
    torch.manual_seed(5)
    module, loader = lab.Factored(), lab.Loader(4)
    optimizer: Any = module.configure_optimizers()
    batches = (batch for _ in range(12) for batch in loader)
    with flannel_pl.open_recording(tmp_path / "stopped/x") as recording:
        run = recording.run(0)
        for row, (x_B2, y_B) in zip(range(1, 13), batches, strict=False):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.net(x_B2), y_B).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for key, shape in kept.items():
                value = optimizer.state[module.net[0].weight][key]
                assert value.shape == shape
                assert run.tensor(f"my_{key}")[row].tobytes() == value.numpy().tobytes(), (row, key)


@pytest.mark.parametrize(
    ("data", "said"), [("Data", "nothing is lost, go on"), ("Stateless", "what is not finished begins anew")]
)
def test_a_run_that_is_stopped_says_whether_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: str, said: str
) -> None:
    StopAfter(monkeypatch)(3)
    given = ["--model", "tests.training.lab.Net", "--data", f"tests.training.lab.{data}", *ALL]
    assert main(["fit", *given, *words(tmp_path, "--experiment.seeds", "1")]) == 143
    assert f"stopped by SIGTERM; {said} with: flannel-pl fit" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "said", "then"),
    [
        ("Data", "nothing is lost, go on", "goes on with this run from its last checkpoint"),
        ("Stateless", "what is not finished begins anew", "begins this run anew, since it has no checkpoint"),
    ],
)
def test_runs_that_are_interrupted_say_whether_they_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, said: str, then: str
) -> None:
    given = ["--model", "tests.training.lab.Net", "--data", f"tests.training.lab.{data}", *ALL]
    given += ["--experiment.seeds", "1..2", "--launch.devices", "2"]
    command = [sys.executable, "-m", "flannel_pl", "fit", *given, *words(tmp_path, steps=10**6)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    runs = [tmp_path / "x" / f"run_{index}" for index in (0, 1)]
    while not all((run / "recording.partial").exists() for run in runs):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped by SIGINT; {said} with: flannel-pl fit" in stderr
    assert main(["verify", str(runs[0])]) == 1
    assert then in capsys.readouterr().out


def test_a_validation_moves_no_random_number_of_the_training(tmp_path: Path) -> None:
    for model, data in (("Net", "Data"), ("Validated", "WithValidation")):
        given = ["--model", f"tests.training.lab.{model}", "--data", f"tests.training.lab.{data}", *ALL]
        assert main(["fit", *given, "--trainer.val_check_interval", "2", *words(tmp_path / data)]) == 0
    assert bits_of(tmp_path / "WithValidation/x") == bits_of(tmp_path / "Data/x")


def test_another_model_on_the_default_data_has_its_tokens(small_data: SmallData, tmp_path: Path) -> None:
    """Its arguments mean what it likes: none of them is taken for the size of anything."""
    of_data = small_data.arguments[:6]
    given = ["--model", "tests.training.lab.TinyLM", *of_data, "--model.vocab_size", "100"]
    given += ["--data.max_seq_len", "16", "--data.batch_size", "4", "--recorder.parameter", "emb.weight"]
    for name, more in {
        "all": ["--recorder.tensors", "[embeddings, grads, logits, losses]"],
        "dead": ["--recorder.tokens", "dead"],
    }.items():
        assert main(["fit", *given, *words(tmp_path), "--experiment.name", name, *more]) == 0
        assert verify(tmp_path / name).ok
    with (
        flannel_pl.open_recording(tmp_path / "all") as whole,
        flannel_pl.open_recording(tmp_path / "dead") as dead,
    ):
        assert whole.run(0).logits.shape == (7, 100)
        ids = whole.masks["dead_indices"]
        assert whole.run(0).embeddings[:, ids].tobytes() == dead.run(0).embeddings[:].tobytes()
    assert main(["report", str(tmp_path / "all")]) == 0


def test_the_default_model_without_a_token_matrix(small_data: SmallData, tmp_path: Path) -> None:
    given = [*small_data.arguments, "--recorder.parameter", "null", "--recorder.tensors", "[losses]"]
    given += ["--recorder.parameters", "{norm: ln_f.weight}"]
    assert main(["fit", *given, *words(tmp_path, steps=3)]) == 0
    assert verify(tmp_path / "x").ok
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        assert recording.run(0).tensor("norm/values").shape == (4, 16)


def test_the_file_a_class_is_in_is_part_of_what_decides_bits(tmp_path: Path) -> None:
    assert main(["fit", *NET, *ALL, *words(tmp_path, steps=2)]) == 0
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        there = recording.run(0).attempts[0].environment
    assert there["own_source"].keys() == {"tests.training.lab"}
    (change,) = environment_changes(there, {**there, "own_source": {"tests.training.lab": "another"}})
    assert change.startswith("own_source.tests.training.lab: ")


def test_so_is_that_of_a_quantity_and_a_callback(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quantity that is changed in the middle would fill a column with two things."""
    given = ["--recorder.quantities", "[tests.quantities.own.Batches]"]
    given += [
        "--trainer.callbacks+=tests.training.odd_classes.Failing",
        "--trainer.callbacks.error",
        "OSError",
    ]
    command = ["fit", *small_data.arguments, *given, "--trainer.callbacks.step", "9"]
    with monkeypatch.context() as patch:
        StopAfter(patch)(3)
        assert main([*command, *words(tmp_path)]) == 143
    with flannel_pl.open_recording(tmp_path / "x/run_0", unfinished=True) as recording:
        there = recording.run(0).attempts[0].environment
    assert there["own_source"].keys() == {"tests.quantities.own", "tests.training.odd_classes"}
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(own.__file__).read_bytes() + b"# another factor\n")
    monkeypatch.setattr("inspect.getsourcefile", lambda kind: str(changed) if "own" in str(kind) else None)
    capsys.readouterr()
    assert main([*command, *words(tmp_path)]) == 2
    assert "own_source.tests.quantities.own: " in capsys.readouterr().err


@pytest.mark.parametrize("parameter", [pytest.param("net.0.bias", marks=pytest.mark.slow), "net.0.weight"])
def test_a_first_parameter_is_shown_as_what_it_is(tmp_path: Path, parameter: str) -> None:
    """Only a matrix has a row for each of something, which a report can measure."""
    given = ["--recorder.parameter", parameter, "--recorder.tensors", "[embeddings, grads, losses]"]
    assert main(["fit", *NET, *given, *words(tmp_path)]) == 0
    for verb in ("verify", "info", "report"):
        assert main([verb, str(tmp_path / "x")]) == 0
    page = (tmp_path / "x" / "report" / "index.html").read_text()
    assert ("no parameter with a row for each token is recorded" in page) == (parameter == "net.0.bias")


def test_a_folder_of_flat_keys_goes_on_with_the_class_by_its_name(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tmp_path, steps=2)
    assert main(["fit", *small_data.arguments, *given]) == 0
    spelled = [word.replace("--model.", "--model.init_args.") for word in small_data.arguments]
    assert main(["fit", "--model", "flannel_pl.TiedGPT2", *spelled, *given]) == 0
    assert "finished already" in capsys.readouterr().out
