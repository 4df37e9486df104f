"""A launcher that the package knows nothing of: the one in examples/, found by its entry point."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typing_extensions import override

import flannel_pl
from flannel_pl import plugins
from flannel_pl.__main__ import main
from flannel_pl.config import LaunchConfig
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment, RunPaths, Slot
from flannel_pl.launch.events import read_events
from flannel_pl.launch.folder import write_run_config
from flannel_pl.launch.jobs import Jobs, settings_of
from flannel_pl.launch.launcher import Capacity, JobState, Launcher, Task, threads_per_run
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.training.cli import parse_config, parser_of, resolve, to_yaml
from tests.conftest import SmallData
from tests.launch import slurm_hold
from tests.launch.status_samples import make_experiment
from tests.processes import alive

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_launcher"
WAIT_S = 120.0


def install(folder: Path, **launchers: str) -> None:
    """Does what an installer does: says in a folder of Python's path which entry points there are."""
    info = folder / "a_launcher-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-launcher\nVersion: 1\n")
    points = "\n".join(f"{name} = {value}" for name, value in launchers.items())
    (info / "entry_points.txt").write_text(f"[{plugins.LAUNCHERS}]\n{points}\n")


class Beside(Launcher):
    """New processes of this host that end with the command."""

    def __init__(self, name: str, experiment: ResolvedExperiment) -> None:
        super().__init__(name, experiment)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @override
    def capacity(self, *, num_runs: int, record: ExperimentRecord | None) -> Capacity:
        return Capacity((Slot("cpu", None, threads_per_run(self.experiment.config, record, auto=1)),) * 2)

    @override
    def start(self, tasks: Sequence[Task]) -> list[str]:
        process = subprocess.Popen(tasks[0].command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes[str(process.pid)] = process
        return [str(process.pid)]

    @override
    def look(self, jobs: Sequence[str], *, wait_s: float = 0.0) -> dict[str, JobState]:
        codes = {job: self.processes[job].poll() for job in jobs}
        return {
            job: JobState("running" if code is None else "failed", exit_code=code, pid=int(job))
            for job, code in codes.items()
        }

    @override
    def stop(self, jobs: Sequence[str], *, now: bool) -> None:
        for job in jobs:
            self.processes[job].send_signal(signal.SIGKILL if now else signal.SIGTERM)
            self.processes[job].wait()


@dataclass
class Required:
    """Keys of a launcher that nobody could start anything beside."""

    key: str


class Demanding(Beside):
    """A launcher that wants to be told something by everybody."""

    settings = Required


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example beside one that cannot be loaded; yields the path on which they are."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    others = {
        "broken": "not_there:Launcher",
        "demanding": f"{__name__}:Demanding",
        "beside": f"{__name__}:Beside",
        "devices": "background:Background",  # which is the name of another key
    }
    install(site, **project["entry-points"][plugins.LAUNCHERS], **others)
    for folder in (site, EXAMPLE):
        monkeypatch.syspath_prepend(folder)
    forget()
    yield os.pathsep.join(map(str, (site, EXAMPLE, ROOT)))
    sys.modules.pop("background", None)
    forget()


def forget() -> None:
    plugins.launchers.cache_clear()
    parser_of.cache_clear()


def words(data: SmallData, folder: Path, *more: str, launcher: str = "background") -> list[str]:
    settings = [
        "--experiment.output_dir",
        str(folder),
        "--experiment.name",
        "jobs",
        "--trainer.max_steps",
        "80",
    ]
    settings += ["--experiment.seeds", "1..3", "--launch.checkpoint_every", "20"]
    return [*data.arguments, *settings, "--launch.launcher", launcher, *more]


def test_its_name_and_its_keys_are_those_of_any_launcher(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words(small_data, tmp_path)]) == 0
    assert "cpu x 2 runs side by side, 1 thread(s) each" in capsys.readouterr().out
    assert main(["plan", *words(small_data, tmp_path, "--launch.background.slots", "3")]) == 0
    assert "cpu x 3 runs side by side" in capsys.readouterr().out
    for word, said in (
        ("--launch.background.slots=x", "launch.background.slots is x, expected a whole number"),
        ("--launch.background.slot=2", "did you mean launch.background.slots?"),
        (
            "--launch.launcher=nobody",
            "launch.launcher is nobody, expected local, slurm, background, beside, broken or demanding",
        ),
        ("--launch.launcher=demanding", "cannot be loaded from tests.launch.test_own_launcher:Demanding: "),
        ("--launch.launcher=broken", "cannot be loaded from not_there:Launcher: No module named 'not_there'"),
    ):
        assert main(["plan", *words(small_data, tmp_path, word)]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser_of().parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--launch.background.slots SLOTS Runs trained side by side." in said
    assert "(type: Literal['local', 'slurm', 'background', 'beside', 'broken', 'demanding']," in said


def test_a_config_has_the_keys_of_its_own_launcher_only(tmp_path: Path) -> None:
    config = resolve(["--launch.launcher", "background", "--experiment.output_dir", str(tmp_path)])
    text = to_yaml(config)
    launch = yaml.safe_load(text)["launch"]
    assert launch["background"] == {"slots": 2}
    assert "slurm" not in launch
    experiment = ResolvedExperiment.from_config(config)
    write_run_config(experiment, experiment.runs[0], experiment_slot(), to_yaml=to_yaml)
    written = yaml.safe_load(experiment.paths.run(0).config.read_text())
    assert written["launch"].keys() == LaunchConfig.__dataclass_fields__.keys(), (
        "read where it is not installed"
    )
    assert {key for key in settings_of(experiment.config) if key.count(".") > 1} == {
        "launch.background.slots"
    }
    # What earlier versions wrote has the keys of every launcher.
    written["launch"]["slurm"] = {"partition": "gpu", "time": "04:00:00", "array_limit": None, "extra": []}
    assert parse_config(written)["launch"]["slurm"]["partition"] == "gpu"
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(written))
    assert resolve(["--config", str(old)])["launch"]["slurm"]["time"] == "04:00:00"


def experiment_slot() -> Slot:
    return Slot("cpu", None, 1)


def test_where_it_is_not_installed_its_jobs_are_not_forgotten(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = words(small_data, tmp_path, "--trainer.max_steps", "3", launcher="local")
    assert main(["fit", *local, "--experiment.run", "0"]) == 0
    paths = ExperimentPaths.find(tmp_path / "jobs")
    Jobs("elsewhere", {0: "job 1"}, "job 2", {}, time.time() - 3600).write(paths)
    assert main(["plan", *local]) == 2
    said = capsys.readouterr().err
    assert "handed to elsewhere, as job 1 job 2, and there is no launcher elsewhere here to ask" in said
    assert "The last sign of life is 1.0 hours old. Start this command on a host of the cluster" in said
    assert f"or, if those jobs have ended, move {paths.jobs} away first" in said


@pytest.mark.slow
def test_a_launcher_that_waits_for_its_jobs(
    small_data: SmallData, weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue, another attempt, the events and the gathering are those of every launcher."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = words(small_data, weird_tmp_path, launcher="beside")
    obstacle = weird_tmp_path / "jobs" / "run_1" / "recording.partial"
    assert main(["fit", *line, "--launch.launcher", "local", "--experiment.run", "0"]) == 0
    obstacle.mkdir(parents=True)
    assert main(["fit", *line, "--launch.max_retries", "1"]) == 1
    obstacle.rmdir()
    assert main(["fit", *line]) == 0
    assert main(["verify", str(weird_tmp_path / "jobs")]) == 0
    events = read_events(weird_tmp_path / "jobs" / "events.jsonl")
    told = [
        (event["event"], event["attempt"])
        for event in events
        if event.get("run") == 1 and event["event"] in ("run_started", "run_failed", "run_finished")
    ]
    first, again = ("run_started", 1), ("run_started", 2)
    assert told == [first, ("run_failed", 1), again, ("run_failed", 2), first, ("run_finished", 1)]
    entry = journal(weird_tmp_path / "jobs", 1)
    assert entry is not None
    assert entry.state == "done"


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"no {what} after {WAIT_S} s"
        time.sleep(0.1)


def journal(folder: Path, run: int) -> JournalEntry | None:
    path = RunPaths(folder / f"run_{run}").journal
    return Journal(path).read() if path.exists() else None


def held(folder: Path, run: int) -> bool:
    entry = journal(folder, run)
    return entry is not None and entry.rows_written == 1 + slurm_hold.STEP


@pytest.mark.slow
def test_queue_retry_kill_attach_again_and_gather(
    small_data: SmallData,
    weird_tmp_path: Path,
    installed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Everything that happens to jobs, with real processes."""
    folder, hold = weird_tmp_path / "jobs", weird_tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv(slurm_hold.VARIABLE, str(hold))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a job needs no launcher but its own
    line = words(small_data, weird_tmp_path, "--trainer.callbacks", "tests.launch.slurm_hold.Hold")
    environment = {**os.environ, "PYTHONPATH": installed}
    command = [sys.executable, "-m", "flannel_pl", "fit", *line]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as launching:
        wait_for(lambda: held(folder, 0) and held(folder, 1), "two runs side by side")
        launching.kill()
    content = json.loads((folder / "jobs.json").read_text())
    assert (content["launcher"], list(content["tasks"])) == ("background", ["0", "1", "2"])
    assert (folder / "run_2" / "config.yaml").exists()
    assert journal(folder, 2) is None, "it waits for a slot"
    pids = [entry.pid for run in (0, 1) if (entry := journal(folder, run)) is not None]
    assert all(map(alive, pids)), "they outlive the command"

    assert main(["fit", *line, "--launch.launcher", "local"]) == 2
    said = capsys.readouterr().err
    stop = f"kill {' '.join([*content['tasks'].values(), content['gather']])}"
    assert f"with a checkpoint each, with: {stop}" in said

    os.kill(pids[0], signal.SIGKILL)  # which its job mends
    os.kill(int(content["tasks"]["1"]), signal.SIGTERM)  # as a person stops it
    wait_for(lambda: (entry := journal(folder, 1)) is not None and entry.state == "stopped", "stop")
    hold.unlink()
    assert main(["fit", *line]) == 1
    said = capsys.readouterr().out
    assert "the jobs are with the background already" in said
    assert f"stop them, with a checkpoint each, with: {stop}" in said
    assert "failed: 1 of 3 runs" in said
    states = [(entry.state, entry.attempt) for run in range(3) if (entry := journal(folder, run)) is not None]
    assert states == [("done", 2), ("stopped", 1), ("done", 1)]
    assert "no finished recording of run 1 (1 of 3 runs)" in (folder / "gather.log").read_text()

    # The same command again hands over what is left, and that gathers.
    assert main(["fit", *line]) == 0
    assert list(json.loads((folder / "jobs.json").read_text())["tasks"]) == ["1"]
    assert main(["verify", str(folder)]) == 0
    with flannel_pl.open_recording(folder / "jobs.safetensors") as recording:
        assert [run.num_rows for run in recording] == [81] * 3
    assert "going on after step" in (folder / "run_1" / "log.txt").read_text()
    assert [event["event"] for event in read_events(folder / "events.jsonl")].count("submitted") == 2
    assert main(["fit", *line]) == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["--help"], ["status"], ["info"]], ids=lambda verb: verb[0])
def test_nobody_looks_for_launchers_who_starts_none(tmp_path: Path, verb: list[str]) -> None:
    make_experiment(tmp_path / "it", num_runs=1)
    line = verb if verb == ["--help"] else [*verb, str(tmp_path / "it")]
    code = "import sys; from flannel_pl.__main__ import main\n"
    code += f"try: main({line!r})\nexcept SystemExit: pass\n"
    code += (
        "print([name for name in sys.modules if 'plugins' in name or 'launchers' in name], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_help_knows_its_keys(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("background", "beside", "broken"):
        assert f"  --launch.{name}.KEY " in said
    assert main(["fit", "--help.launch"]) == 0
    said = capsys.readouterr().out
    for one in dataclasses.fields(importlib.import_module("background").Background.settings):
        assert f"--launch.background.{one.name} " in said
    assert "--launch.slurm.time null" in said
