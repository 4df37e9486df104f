"""What slurm.json says, also an old or a damaged one, and what it means where Slurm cannot be asked."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.slurm import FORGOTTEN_S, refuse_beside_jobs
from flannel_pl.launch.submission import ArrayJob, Submission
from tests.conftest import SmallData
from tests.launch.status_samples import make_experiment, write_journal

SPLIT = Submission(
    (ArrayJob("12", 0), ArrayJob("13", 1000)), "14", (0, 999, 1000, 1203), {"launch.max_retries": 2}, 1.7e9
)
OLD: dict[str, Any] = {"array_job": "12", "gather_job": None, "runs": [0, 1, 2]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    SPLIT.write(paths)
    assert Submission.read(paths) == SPLIT
    assert SPLIT.jobs == ["12", "13", "14"]
    assert [SPLIT.task(run) for run in SPLIT.runs] == ["12_0", "12_999", "13_0", "13_203"]


def test_what_an_older_version_wrote_is_read(tmp_path: Path) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    paths.slurm.write_text(json.dumps(OLD))
    found = Submission.read(paths)
    assert found == Submission((ArrayJob("12", 0),), None, (0, 1, 2), None, 0.0)
    assert [found.task(run) for run in found.runs] == ["12_0", "12_1", "12_2"]


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
def test_what_is_not_readable_is_no_submission(tmp_path: Path, content: str) -> None:
    paths = ExperimentPaths(tmp_path, "exp")
    paths.slurm.write_text(content)
    assert Submission.read(paths) is None


def set_age(paths: ExperimentPaths, *, seconds: float) -> None:
    os.utime(paths.slurm, times=(time.time() - seconds,) * 2)


def test_without_slurm_commands_old_jobs_are_taken_for_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    experiment = make_experiment(tmp_path / "exp", 3)
    paths, now_s = experiment.paths, time.time()
    refuse_beside_jobs(paths)  # nothing was submitted
    for text in (
        json.dumps(OLD),
        json.dumps(Submission((ArrayJob("12", 0),), None, (0,), {}, now_s).content),
    ):
        paths.slurm.write_text(text)
        with pytest.raises(
            UserError, match=r"as 12, and there is no squeue here .* sign of life is 0\.0 hours"
        ):
            refuse_beside_jobs(paths)
        set_age(paths, seconds=FORGOTTEN_S + 7200)
        refuse_beside_jobs(paths)
        said = capsys.readouterr().err
        assert "The last sign of life is 26.0 hours old, so the jobs are taken for ended" in said
    # A copy of the folder has new times; what is written in the files counts.
    Submission((ArrayJob("12", 0),), None, (0,), {}, now_s - 2 * FORGOTTEN_S).write(paths)
    refuse_beside_jobs(paths)
    write_journal(experiment, 0, updated_s=now_s - 3600)
    with pytest.raises(
        UserError, match=r"1\.0 hours old\. Start this command on a host of the cluster; or, if"
    ):
        refuse_beside_jobs(paths)
    experiment.paths.run(0).journal.write_bytes(b"?" * 8192)
    refuse_beside_jobs(paths)


def test_a_folder_from_a_cluster_goes_on_elsewhere(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *small_data.arguments, "--trainer.max_steps", "3", "--experiment.seeds", "1..2"]
    words += ["--experiment.output_dir", str(tmp_path), "--launch.threads_per_run", "1"]
    assert main([*words, "--experiment.run", "0"]) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    paths = ExperimentPaths(tmp_path / "flannel", "flannel")
    paths.slurm.write_text(json.dumps(OLD))
    assert main([*words, "--experiment.run", "1"]) == 2
    assert f"if those jobs have ended, move {paths.slurm} away first" in capsys.readouterr().err
    set_age(paths, seconds=3 * FORGOTTEN_S)
    assert main([*words, "--experiment.run", "1"]) == 0
    assert "The last sign of life is 72.0 hours old, so the jobs are taken" in capsys.readouterr().err
    assert main([*words]) == 0, "where nothing is to be trained, nobody asks"
    assert "taken for ended" not in capsys.readouterr().err
