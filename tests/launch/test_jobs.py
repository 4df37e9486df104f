"""What jobs.json says, also an old or a damaged one, and what it means where Slurm cannot be asked."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.jobs import Jobs, setting_changes
from flannel_pl.launch.unattended import FORGOTTEN_S, refuse_beside_jobs
from flannel_pl.training.cli import resolve
from tests.conftest import SmallData
from tests.launch.status_samples import make_experiment, write_journal

JOBS = Jobs("slurm", {0: "12_0", 999: "12_999", 1000: "13_0"}, "14", {"launch.max_retries": 2}, 1.7e9)
NEW: dict[str, Any] = JOBS.content

# What earlier versions wrote, as they wrote it.
OLD: dict[str, Any] = {"array_job": "12", "gather_job": None, "runs": [0, 1, 2]}
STORED = Path(__file__).parent / "stored" / "slurm.json"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    paths.older_jobs.write_text(json.dumps(OLD))
    JOBS.write(paths)
    assert Jobs.read(paths) == JOBS
    assert JOBS.names == ["12_0", "12_999", "13_0", "14"]
    assert not paths.older_jobs.exists()


def test_what_older_versions_wrote_is_read(tmp_path: Path) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    paths.older_jobs.write_text(json.dumps(OLD))
    assert Jobs.read(paths) == Jobs("slurm", {0: "12_0", 1: "12_1", 2: "12_2"}, None, None, 0.0)
    shutil.copy(STORED, paths.older_jobs)
    found = Jobs.read(paths)
    assert found is not None
    assert found.tasks == {0: "12_0", 999: "12_999", 1000: "13_0", 1203: "13_203"}
    assert (found.launcher, found.gather, found.submitted_s) == ("slurm", "14", 1700000000.0)
    assert found.settings is not None
    assert found.settings["launch.slurm.array_limit"] == 2
    JOBS.write(paths)
    assert Jobs.read(paths) == JOBS


def test_the_settings_of_an_older_version_are_no_change(tmp_path: Path) -> None:
    """Of a launcher that jobs are not with, keys may come and go."""
    paths = ExperimentPaths(tmp_path, "exp")
    shutil.copy(STORED, paths.older_jobs)
    config = resolve(["--launch.launcher", "slurm", "--launch.slurm.array_limit", "3"])
    found = Jobs.read(paths)
    assert found is not None
    config["launch"]["of_a_plugin"] = {"key": 1}
    changes = setting_changes(found, Config.of(config))
    assert changes.pop("launch.of_a_plugin.key") == (None, 1), "unless nobody knows it is a launcher"
    assert changes == {"launch.slurm.array_limit": (2, 3)}


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "[" * 100_000, "null"),
        *(json.dumps(OLD | change) for change in ({"runs": 3}, {"runs": ["x"]}, {"array_job": "12;rm"})),
        *(json.dumps(OLD | {"arrays": value}) for value in (7, ["a"], [{"job": "1"}], [], None)),
        json.dumps(OLD | {"arrays": [{"job": "1", "first_run": 2}]}),
        json.dumps(OLD | {"settings": 7}),
    ],
)
def test_what_is_not_readable_is_nothing(tmp_path: Path, content: str) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    for path in (paths.older_jobs, paths.jobs):
        path.write_text(content)
        assert Jobs.read(paths) is None


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"launcher": ""},
            {"launcher": 7},
            {"tasks": ["12_0"]},
            {"tasks": {"0": 12}},
            {"tasks": {"a": "12"}},
        ),
        *({"tasks": {"0": "-x"}}, {"gather": 14}, {"settings": 7}, {"submitted_s": None}),
    ],
)
def test_what_is_not_as_it_is_written_is_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    paths.jobs.write_text(json.dumps(NEW))
    assert Jobs.read(paths) == JOBS
    paths.jobs.write_text(json.dumps(NEW | change))
    assert Jobs.read(paths) is None


def set_age(paths: ExperimentPaths, *, seconds: float) -> None:
    os.utime(paths.noted_jobs, times=(time.time() - seconds,) * 2)


def test_without_slurm_commands_old_jobs_are_taken_for_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    experiment = make_experiment(tmp_path / "exp", 3)
    paths, now_s = experiment.paths, time.time()
    refuse_beside_jobs(experiment)  # nothing was submitted
    for path, content in (
        (paths.older_jobs, OLD),
        (paths.jobs, Jobs("slurm", {0: "12_0"}, None, {}, now_s).content),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(
            UserError, match=r"as 12, and there is no squeue here .* sign of life is 0\.0 hours"
        ):
            refuse_beside_jobs(experiment)
        set_age(paths, seconds=FORGOTTEN_S + 7200)
        refuse_beside_jobs(experiment)
        said = capsys.readouterr().err
        assert "The last sign of life is 26.0 hours old, so the jobs are taken for ended" in said
    # A copy of the folder has new times; what is written in the files counts.
    Jobs("slurm", {0: "12_0"}, None, {}, now_s - 2 * FORGOTTEN_S).write(paths)
    refuse_beside_jobs(experiment)
    write_journal(experiment, 0, updated_s=now_s - 3600)
    with pytest.raises(
        UserError, match=r"1\.0 hours old\. Start this command on a host of the cluster; or, if"
    ):
        refuse_beside_jobs(experiment)
    experiment.paths.run(0).journal.write_bytes(b"?" * 8192)
    refuse_beside_jobs(experiment)


def test_a_folder_from_a_cluster_goes_on_elsewhere(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *small_data.arguments, "--trainer.max_steps", "3", "--experiment.seeds", "1..2"]
    words += ["--experiment.output_dir", str(tmp_path), "--launch.threads_per_run", "1"]
    assert main([*words, "--experiment.run", "0"]) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    paths = ExperimentPaths(tmp_path / "flannel", "flannel")
    paths.older_jobs.write_text(json.dumps(OLD))
    assert main([*words, "--experiment.run", "1"]) == 2
    assert f"if those jobs have ended, move {paths.older_jobs} away first" in capsys.readouterr().err
    set_age(paths, seconds=3 * FORGOTTEN_S)
    assert main([*words, "--experiment.run", "1"]) == 0
    assert "The last sign of life is 72.0 hours old, so the jobs are taken" in capsys.readouterr().err
    assert main([*words]) == 0, "where nothing is to be trained, nobody asks"
    assert "taken for ended" not in capsys.readouterr().err
