"""`flannel_pl.fit` and its like: what the verbs do, as objects and exceptions."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.launch.events import read_events
from tests.conftest import SmallData
from tests.processes import alive


def changes(data: SmallData, folder: Path, **trainer: Any) -> dict[str, Any]:
    keys = iter(data.arguments)
    small = {key.removeprefix("--"): value for key, value in zip(keys, keys, strict=True)}
    numbers: dict[str, Any] = {
        k: int(x) if x.isdigit() else 1.0 if x == "1.0" else x for k, x in small.items()
    }
    return {
        **numbers,
        "experiment": {"output_dir": folder, "seeds": [1, 2]},
        "launch__threads_per_run": 1,
        "trainer": {"max_steps": 3, **trainer},
    }


@pytest.fixture(scope="module")
def experiment(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> flannel_pl.Experiment:
    return flannel_pl.fit(**changes(small_data, tmp_path_factory.mktemp("api")), progress=False)


def bits_of(folder: Path) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder) as recording:
        return {f"{run.index} {n}": run.tensor(n)[:].tobytes() for run in recording for n in run.names}


@pytest.mark.slow
def test_it_is_what_the_command_does(
    experiment: flannel_pl.Experiment, small_data: SmallData, tmp_path: Path
) -> None:
    words = [*small_data.arguments, "--experiment.seeds", "1..2", "--trainer.max_steps", "3"]
    words += ["--launch.threads_per_run", "1", "--experiment.output_dir", str(tmp_path)]
    assert main(["fit", *words]) == 0
    assert bits_of(experiment.folder) == bits_of(tmp_path / "flannel")


@pytest.mark.slow
def test_nothing_of_this_process_is_touched(small_data: SmallData, tmp_path: Path) -> None:
    def settings() -> list[Any]:
        drawn: Any = np.random.get_state()  # noqa: NPY002
        random = (torch.get_rng_state().tolist(), drawn[1].tolist())
        torchs = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
        return [random, torchs, dict(os.environ)]

    before = settings()
    flannel_pl.plan(**changes(small_data, tmp_path))
    assert settings() == before


@pytest.mark.slow
def test_an_experiment_leads_to_everything(experiment: flannel_pl.Experiment, tmp_path: Path) -> None:
    assert (experiment.name, experiment.seeds, len(experiment)) == ("flannel", (1, 2), 2)
    assert experiment.config["trainer"]["max_steps"] == 3
    assert [run.state for run in experiment.status().runs] == ["done", "done"]
    assert flannel_pl.status(experiment.folder) == experiment.status()
    assert experiment.verify().ok
    assert flannel_pl.verify(experiment.folder).ok
    with experiment.recording(framework="torch") as recording:
        assert isinstance(recording.run(0)["E"].values[1:3], torch.Tensor)
        assert flannel_pl.Experiment(recording).folder == experiment.folder
    run = experiment.run(1)
    assert run.seed == 2
    assert flannel_pl.Experiment(experiment.folder / "run_1").seeds == (1, 2)
    assert experiment.compare(experiment).equal
    assert experiment.gather().name == "flannel.safetensors"
    assert repr(experiment) == (
        f"Experiment({experiment.folder}: 2 of 2 runs done; 0.2 MB written; gathered)"
    )
    with pytest.raises(IndexError, match="has no run 2; it has 2 runs, counted from 0"):
        experiment.run(2)


@pytest.mark.parametrize(
    "verb", [pytest.param(flannel_pl.fit, marks=pytest.mark.slow), flannel_pl.plan], ids=["fit", "plan"]
)
def test_what_is_wrong_is_an_exception(small_data: SmallData, tmp_path: Path, verb: Any, capfd: Any) -> None:
    with pytest.raises(flannel_pl.UserError, match=r"^Group 'model' does not accept option 'lr'"):
        verb(**changes(small_data, tmp_path), model__lr=3)
    assert "error" not in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


def test_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(flannel_pl.UserError, match=r"holds no experiment|no experiment"):
        flannel_pl.Experiment(tmp_path)


@pytest.mark.slow
def test_runs_that_fail_are_named(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "tests.training.lab.Leaves", "data": "tests.training.lab.Data"}
    given |= {"recorder__parameters": "all", "trainer": {"max_steps": 3, "accelerator": "cpu"}}
    given |= {"experiment": {"output_dir": tmp_path, "seeds": "1..2"}, "launch__max_retries": 0}
    with pytest.raises(flannel_pl.RunError) as caught:
        flannel_pl.fit(**given, progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 2 runs failed; what is finished is kept"
    assert lines[1].startswith("run 0 (seed 1): ")
    assert "SystemExit: 3" in lines[1]
    assert lines[-1] == f"the logs are in {tmp_path}/flannel/run_*/log.txt; the same call goes on"


SCRIPT = """
import flannel_pl, json, sys
changes = json.loads(sys.argv[1])
try:
    experiment = flannel_pl.fit(**changes, progress=False)
except KeyboardInterrupt as error:
    print("interrupted:", error)
    sys.exit(7)
print(experiment.status().num_runs_in["done"])
"""


def start(given: dict[str, Any]) -> "subprocess.Popen[str]":
    import json

    words = [sys.executable, "-c", SCRIPT, json.dumps(given, default=str)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    folder = Path(given["experiment"]["output_dir"]) / "flannel"
    while not all(list(folder.glob(f"run_{index}/checkpoint*.ckpt")) for index in (0, 1)):
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_script_without_a_guard_is_interrupted_in_order_and_goes_on(
    small_data: SmallData, tmp_path: Path
) -> None:
    given = changes(small_data, tmp_path, max_steps=10**4) | {"launch__checkpoint_every": 10}
    process = start(given)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert output == "interrupted: stopped by SIGINT; nothing is lost, go on with the same call\n"
    assert flannel_pl.status(tmp_path / "flannel").num_runs_in["stopped"] == 2
    given["trainer"]["max_steps"] = 10**4
    events = read_events(tmp_path / "flannel" / "events.jsonl")
    assert [event["event"] for event in events].count("stopping") == 1


@pytest.mark.slow
def test_a_temporary_folder_that_is_emptied_ends_no_training(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = start(changes(small_data, tmp_path, max_steps=300) | {"launch__checkpoint_every": 10})
    emptied = list(temporary.glob("flannel-*/answers"))
    assert emptied
    for answers in emptied:
        shutil.rmtree(answers.parent)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "2\n")


@pytest.mark.slow
def test_training_ends_with_the_program_that_has_started_it(small_data: SmallData, tmp_path: Path) -> None:
    process = start(changes(small_data, tmp_path, max_steps=10**5) | {"launch__checkpoint_every": 10})
    events = read_events(tmp_path / "flannel" / "events.jsonl")
    runs = [event["pid"] for event in events if event["event"] == "run_started"]
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 30
    while any(map(alive, runs)):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert flannel_pl.status(tmp_path / "flannel").num_runs_in["stopped"] == 2
