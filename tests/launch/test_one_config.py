"""One folder, one config: whatever is there of an experiment, a command for another one changes nothing."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flannel_pl.cli.as_jobs
import flannel_pl.cli.beginning
import flannel_pl.cli.fit
from flannel_pl.__main__ import main
from flannel_pl.cli.beginning import locked_experiment, write_run_configs
from flannel_pl.cli.request import understand
from flannel_pl.dotted import flatten
from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment
from flannel_pl.launch.folder import begun_record, find_beginning, write_folder
from flannel_pl.launch.launchers.slurm.submitting import SlurmLauncher
from flannel_pl.recording.belonging import contradictions, gathered_contradictions
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.training.cli import resolve
from flannel_pl.training.fit import hold_run
from tests.conftest import SmallData
from tests.traces import traces

GATHERS = {
    "single": ("--experiment.gather", "single"),
    "dropped": ("--experiment.gather", "single", "--experiment.keep_shards", "false"),
    "index": ("--experiment.gather", "index"),
    "none": ("--experiment.gather", "none"),
}
SEEDS = ("7", "7..8")

CHANGES = {
    "experiment.seeds": "7..9",
    "experiment.sweep": "{model.init_scale: [0.01, 0.02]}",
    "model.learning_rate": "0.5",
    "model.weight_decay": "0.5",
    "data.target_offset": "1",
    "data.batch_size": "2",
    "recorder.every_n_steps": "2",
    "trainer.max_steps": "4",
    "trainer.gradient_clip_val": "0.5",
    "trainer.accumulate_grad_batches": "2",
}

FolderMaker = Callable[[str, str], "Folder"]


class Folder:
    """An experiment's folder, and the command it was made with."""

    def __init__(self, data: SmallData, above: Path, words: tuple[str, ...]) -> None:
        self.paths = ExperimentPaths(above / "exp", "exp")
        self.words = [*data.arguments, "--trainer.max_steps", "2", *words]

    def __call__(self, verb: str, *words: str) -> int:
        place = ["--experiment.output_dir", str(self.paths.folder.parent), "--experiment.name", "exp"]
        return main([verb, *self.words, *place, *words])

    def experiment(self, *words: str) -> ResolvedExperiment:
        place = ["--experiment.output_dir", str(self.paths.folder.parent), "--experiment.name", "exp"]
        return ResolvedExperiment.from_config(resolve([*self.words, *place, *words]))

    def begin(self) -> None:
        """Describes the experiment, as a launcher does that dies right afterwards."""
        provenance = {"data": {"corpus": "ab"}}
        settled = {"accelerator": "cpu", "threads_per_run": 1}
        experiment = self.experiment()
        write_folder(experiment, experiment.record(provenance, settled=settled), masks=b"masks")


@pytest.fixture(scope="module")
def finished(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> FolderMaker:
    """Makes a copy of a finished experiment; each kind is trained once, in this process."""
    made: dict[tuple[str, str], Folder] = {}

    def make(gather: str, seeds: str) -> Folder:
        words = (*GATHERS[gather], "--experiment.seeds", seeds)
        if (gather, seeds) not in made:
            folder = Folder(small_data, tmp_path_factory.mktemp("made"), words)
            for run in range(len(folder.experiment().runs)):
                assert folder("fit", "--experiment.run", str(run)) == 0
            assert folder("fit") == 0
            made[gather, seeds] = folder
        copy = Folder(small_data, tmp_path_factory.mktemp("copy"), words)
        shutil.copytree(made[gather, seeds].paths.folder, copy.paths.folder)
        return copy

    return make


@pytest.fixture
def new(small_data: SmallData, tmp_path: Path) -> Folder:
    return Folder(small_data, tmp_path, ("--experiment.seeds", "7"))


def refused(folder: Folder, capsys: pytest.CaptureFixture[str], *words: str, verb: str = "fit") -> str:
    """Runs a command that must be refused and change nothing; returns what it says."""
    before = traces(folder.paths.folder)
    capsys.readouterr()
    assert folder(verb, *words) == 2
    captured = capsys.readouterr()
    assert traces(folder.paths.folder) == before
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("gather", GATHERS)
def test_a_finished_experiment_is_replaced_by_no_other(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str], gather: str, seeds: str
) -> None:
    folder = finished(gather, seeds)
    changes = {key: CHANGES[key] for key in ("experiment.seeds", "experiment.sweep", "model.learning_rate")}
    changes["experiment.keep_shards"] = str(gather == "dropped").lower()
    changes["experiment.gather"] = "single" if gather == "index" else "index"
    for key, value in changes.items():
        for verb in ("plan", "fit"):
            message = refused(folder, capsys, f"--{key}", value, verb=verb)
            assert f"Different: {key}: " in message, message
    assert verify(folder.paths.folder).ok
    assert folder("fit") == 0
    assert "finished" in capsys.readouterr().out


RUNS_AND_FILES = ("experiment.seeds", "experiment.sweep", "experiment.gather", "experiment.keep_shards")
NO_BITS = re.compile(
    r"launch\..*|seed_everything|recorder\.live|data\.\w+_path|experiment\.(name|output_dir|run)|trainer\.(accelerator|devices|logger"
    r"|log_every_n_steps|profiler|enable_\w+|default_root_dir|model_registry)"
)
"""Keys that change no bit of a recording; what decides it of launch is compared as it was settled."""


def another(value: Any) -> Any:
    """Another value than this, whatever it is."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else ["x"] if isinstance(value, list) else {"x": ["x"]}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("gather", GATHERS)
def test_any_key_that_decides_bits_makes_another_experiment(
    finished: FolderMaker, gather: str, seeds: str
) -> None:
    """Every key there is, found in the config: refused by the folder, and in its runs' and gathered files."""
    folder = finished(gather, seeds)
    experiment, record = folder.experiment(), read_record(folder.paths)
    shard, gathered = (
        read_layout(path).flannel if path.exists() else None
        for path in (folder.paths.run(0).recording, folder.paths.gathered)
    )
    assert (shard or gathered) is not None
    look: list[tuple[Any, Callable[..., Any]]] = [
        (shard, partial(contradictions, index=0)),
        (gathered, gathered_contradictions),
    ]
    for key, value in flatten(experiment.config.content):
        config = experiment.config.but({key: another(value)})
        changed = dataclasses.replace(experiment, config=config)
        if NO_BITS.fullmatch(key):
            assert begun_record(changed) is not None, key
        elif key not in RUNS_AND_FILES:
            with pytest.raises(UserError, match=rf"Different: {re.escape(key)}: "):
                begun_record(changed)
            for metadata, find in look:
                if metadata is not None:
                    said = list(find({**metadata, "config": config.content}, record))
                    assert [one.startswith(f"its {key} is ") for one in said] == [True], said


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("gather", GATHERS)
def test_every_command_with_another_key_is_refused(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str], gather: str, seeds: str
) -> None:
    folder = finished(gather, seeds)
    for key, value in CHANGES.items():
        for verb in ("plan", "fit"):
            message = refused(folder, capsys, f"--{key}", value, verb=verb)
            assert f"Different: {key}: " in message, message
    assert verify(folder.paths.folder).ok


@pytest.mark.parametrize("gather", ["single", "dropped"])
def test_a_run_that_is_gathered_already_is_lost_to_no_other(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str], gather: str
) -> None:
    # As a launcher leaves it that is killed when one of two runs is finished and gathered.
    folder = finished(gather, "7..8")
    paths = folder.paths
    if gather == "dropped":
        shutil.rmtree(paths.folder)
        assert folder("fit", "--experiment.run", "0") == 0
    else:
        shutil.rmtree(paths.run(1).folder)
        paths.gathered.unlink()
    Gatherer(paths.folder).add(0)
    assert paths.growing.exists()
    assert paths.run(0).recording.exists() == (gather == "single")
    for key, value in CHANGES.items():
        assert f"Different: {key}: " in refused(folder, capsys, f"--{key}", value)
    assert "Different: model.learning_rate: " in refused(folder, capsys, *OTHER, verb="plan")


BEGINNINGS: dict[str, Callable[[ExperimentPaths], Path]] = {
    "journal": lambda paths: paths.run(0).journal,
    "partial": lambda paths: paths.run(0).partial,
    "recording": lambda paths: paths.run(0).recording,
    "checkpoint": lambda paths: paths.run(0).checkpoint(3, "0" * 16),
    "another run's": lambda paths: paths.run(7).journal,
    "growing": lambda paths: paths.growing,
    "its notes": lambda paths: paths.growing_notes,
    "moved": lambda paths: paths.growing_moved,
    "gathered": lambda paths: paths.gathered,
    "gathered, of another name": lambda paths: paths.folder / "other.safetensors",
    "index": lambda paths: paths.index,
    "extras": lambda paths: paths.index_extras,
    "jobs": lambda paths: paths.jobs,
    "jobs of an earlier version": lambda paths: paths.older_jobs,
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_everything_that_shows_a_beginning_counts(
    new: Folder, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    new.begin()
    assert find_beginning(new.paths) is None
    sign = BEGINNINGS[kind](new.paths)
    sign.parent.mkdir(exist_ok=True)
    sign.write_bytes(b"")
    assert find_beginning(new.paths) == sign
    for verb in ("plan", "fit"):
        message = refused(new, capsys, "--model.learning_rate", "0.5", verb=verb)
        assert "Different: model.learning_rate: 0.001 there, 0.5 now" in message
    new.paths.record.unlink()  # and without a record nothing is known of it
    for verb in ("plan", "fit"):
        message = refused(new, capsys, verb=verb)
        assert f"has {sign.relative_to(new.paths.folder)} in it but no experiment.json" in message


def test_a_run_that_is_about_to_begin_counts_too(new: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    new.begin()
    experiment = new.experiment()
    new.paths.run(0).folder.mkdir()
    with hold_run(experiment, experiment.runs[0]):
        message = refused(new, capsys, "--model.learning_rate", "0.5")
        assert "Different: model.learning_rate: 0.001 there, 0.5 now" in message
    assert begun_record(new.experiment("--model.learning_rate", "0.5")) is None


def test_a_run_of_what_is_not_described_yet_is_no_beginning(new: Folder) -> None:
    # A scheduler may start all runs at once: each is locked before one of them describes the experiment.
    experiment = new.experiment()
    new.paths.run(0).folder.mkdir(parents=True)
    with hold_run(experiment, experiment.runs[0]):
        assert begun_record(experiment) is None
        new.paths.run(0).journal.touch()
        with pytest.raises(UserError, match=r"has run_0/journal in it but no experiment.json"):
            begun_record(experiment)


def test_what_was_only_described_may_begin_with_another_config(new: Folder) -> None:
    new.begin()
    for path in (new.paths.run(0).config, new.paths.run(0).log, new.paths.events, new.paths.lock):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (new.paths.folder / ".nfs0001").touch()
    assert new("fit", "--model.learning_rate", "0.5") == 0
    record = json.loads(new.paths.record.read_text())
    assert record["config"]["model"]["learning_rate"] == 0.5
    assert verify(new.paths.folder).ok


def test_what_was_only_described_may_begin_with_other_data_and_threads(new: Folder) -> None:
    new.begin()  # with data that are not these
    record = json.loads(new.paths.record.read_text())
    record["settled"]["threads_per_run"] = 7
    new.paths.record.write_text(json.dumps(record))
    for verb in ("plan", "fit"):
        assert new(verb, "--launch.threads_per_run", "1") == 0
    record = json.loads(new.paths.record.read_text())
    assert record["provenance"]["data"]["corpus"] != "ab"
    assert record["settled"]["threads_per_run"] == 1
    assert verify(new.paths.folder).ok


@pytest.mark.parametrize("changed", ["data", "threads_per_run"])
def test_what_was_begun_may_not(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    folder = finished("none", "7")
    folder.paths.run(0).recording.unlink()  # so that there is something to do
    record = json.loads(folder.paths.record.read_text())
    if changed == "data":
        record["provenance"]["data"]["corpus"] = "ab"
    else:
        record["settled"]["threads_per_run"] = 7
    folder.paths.record.write_text(json.dumps(record))
    for verb in ("plan", "fit"):
        message = refused(folder, capsys, "--launch.threads_per_run", "1", verb=verb)
        assert {"data": "content of the corpus: ab there", "threads_per_run": "7 there, 1 now"}[
            changed
        ] in message


def pause_once(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Lets something happen when the next command has understood what is asked for and not begun."""

    def pause(words: list[str]) -> Any:
        request = understand(words)
        monkeypatch.setattr(flannel_pl.cli.fit, "understand", understand)
        meanwhile()
        return request

    monkeypatch.setattr(flannel_pl.cli.fit, "understand", pause)


OTHER = ("--model.learning_rate", "0.5")
SLURM = ("--launch.launcher", "slurm", "--launch.detach", "true")


@pytest.mark.parametrize("words", [("--experiment.seeds", "7"), ("--experiment.seeds", "7..8"), SLURM])
@pytest.mark.parametrize("how_far", ["described", "trained"])
def test_whoever_was_paused_meets_what_others_have_begun(
    new: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    how_far: str,
) -> None:
    monkeypatch.setattr(SlurmLauncher, "check", lambda launcher: None)
    monkeypatch.setattr(flannel_pl.cli.as_jobs, "submit", lambda *arguments, **more: pytest.fail("submitted"))
    held = contextlib.ExitStack()

    def meanwhile() -> None:
        if how_far == "trained":
            assert new("fit", "--experiment.run", "0") == 0
        else:  # its process lives and loads the model
            new.begin()
            experiment = new.experiment()
            new.paths.run(0).folder.mkdir(exist_ok=True)
            held.enter_context(hold_run(experiment, experiment.runs[0]))

    monkeypatch.setattr("flannel_pl.training.fit.LOCK_WAIT_S", 0.0)
    pause_once(monkeypatch, meanwhile)
    with held:
        assert new("fit", *OTHER, *words) == 2
    message = capsys.readouterr().err
    if how_far == "trained" or len(words) > 2 or words[-1] != "7":
        assert re.search(r"Different: .*model\.learning_rate: 0\.001 there, 0\.5 now", message), message
    else:
        assert "run 0 of" in message
        assert "is in use by process" in message
    assert json.loads(new.paths.record.read_text())["config"]["model"]["learning_rate"] == 0.001
    if how_far == "trained":
        assert verify(new.paths.folder).ok


def test_the_holder_of_the_lock_is_named_only_if_the_config_is_the_same(
    new: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flannel_pl.cli.fit, "FOLDER_WAIT_S", 0.0)
    new.begin()
    new.paths.run(0).folder.mkdir()
    new.paths.run(0).journal.touch()
    with locked_experiment(new.experiment()):
        assert new("fit", *OTHER) == 2
        assert "Different: model.learning_rate" in capsys.readouterr().err


def test_numbers_that_an_earlier_version_kept_as_texts(
    new: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new.words += ["--experiment.sweep", '{model.adam_epsilon: ["1e-8", 0.02], model.lr_schedule: [constant]}']
    with monkeypatch.context() as earlier:
        earlier.setattr(flannel_pl.training.cli, "_of_its_type", lambda config, key, value: value)
        assert new("fit", "--experiment.run", "0") == 0
    assert json.loads(new.paths.record.read_text())["runs"][0]["swept"]["model.adam_epsilon"] == "1e-8"
    assert new("fit") == 0
    assert verify(new.paths.folder).ok
    assert "Different: experiment.sweep" in refused(
        new,
        capsys,
        "--experiment.sweep",
        '{model.adam_epsilon: ["1e-7", 0.02], model.lr_schedule: [constant]}',
    )


def test_keys_of_a_sweep_in_another_order_number_other_runs(
    new: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    new.words += ["--experiment.sweep", "{model.init_scale: [0.01, 0.02], model.weight_decay: [0, 0.1]}"]
    new.begin()
    new.paths.run(0).folder.mkdir()
    new.paths.run(0).journal.touch()
    turned = "{model.weight_decay: [0, 0.1], model.init_scale: [0.01, 0.02]}"
    message = refused(new, capsys, "--experiment.sweep", turned)
    assert "Different: run 1: seed 7, " in message


def test_a_renamed_experiment_goes_on_under_its_old_name(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished("dropped", "7")
    renamed = folder.paths.folder.with_name("renamed")
    folder.paths.folder.rename(renamed)
    before = traces(renamed)
    assert folder("fit", "--experiment.name", "renamed") == 0
    assert f"finished already: {renamed / 'exp.safetensors'}" in capsys.readouterr().out
    assert traces(renamed) == before


@pytest.mark.parametrize("changed", ["config", "runs"])
@pytest.mark.parametrize("gather", GATHERS)
def test_what_was_recorded_passes_for_no_other_experiment(
    finished: FolderMaker, capsys: pytest.CaptureFixture[str], gather: str, changed: str
) -> None:
    # As if experiment.json were edited, or replaced by another experiment's.
    folder = finished(gather, "7")
    record = json.loads(folder.paths.record.read_text())
    if changed == "config":
        record["config"]["model"]["learning_rate"] = 0.5
        words = OTHER
    else:
        record["config"]["experiment"]["seeds"] = 8
        record["runs"][0]["seed"] = 8
        words = ("--experiment.seeds", "8")
    folder.paths.record.write_text(json.dumps(record))
    before = traces(folder.paths.folder)
    for verb in ("plan", "fit", "verify"):
        capsys.readouterr()
        assert (main(["verify", str(folder.paths.folder)]) if verb == "verify" else folder(verb, *words)) == 1
        message = "".join(capsys.readouterr())
        assert "does not belong to this experiment: its " in message
        assert "bring back the one that belongs here" in message
        assert "gather again" not in message
        assert "delete" not in message
        if verb != "verify":
            assert len(message.splitlines()) == 1
        assert traces(folder.paths.folder) == before


def test_a_refused_start_leaves_no_folder(
    new: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pause_once(monkeypatch, lambda: new("fit"))
    assert new("fit", *OTHER, "--experiment.seeds", "7..9", "--experiment.run", "2") == 2
    assert "Different: " in capsys.readouterr().err
    assert new.paths.run(0).recording.exists()
    assert not new.paths.run(2).folder.exists()
    assert new("fit") == 0

    def refuse(*arguments: object, **more: object) -> None:
        raise UserError("no")

    shutil.rmtree(new.paths.folder)
    monkeypatch.setattr(flannel_pl.cli.beginning, "write_folder", refuse)
    assert new("fit") == 2
    assert not new.paths.folder.exists()


def test_data_files_that_change_before_a_run_starts_are_refused(
    new: Folder,
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = tmp_path / "corpus.txt"
    shutil.copy(small_data.corpus, corpus)

    def change(*arguments: Any) -> None:  # the experiment is described, and the run about to start
        write_run_configs(*arguments)
        corpus.write_bytes(corpus.read_bytes() + b" " + corpus.read_bytes()[:200])

    monkeypatch.setattr(flannel_pl.cli.fit, "write_run_configs", change)
    assert new("fit", "--data.corpus_path", str(corpus), "--data.mask_path", "null") == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"the data files are not those that {new.paths.record} was written for: " in message
    assert "content of the corpus is " in message
    assert "bring them back as they were" in message
    assert not list(new.paths.folder.rglob("recording.*"))
