"""Every run is rank 0 of its own, whatever numbers the process that trains it was given."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities import rank_zero

from flannel_pl.__main__ import main
from flannel_pl.imports import stand_alone
from tests.conftest import SmallData

NUMBERED = {
    "srun": {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "2"},
    "torchrun": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_PORT": "1"},
    "LOCAL_RANK alone": {"LOCAL_RANK": "3"},
    "jsrun": {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_LOCAL_RANK": "1"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "PMIX_RANK": "1"},
    "no number at all": {"RANK": "first"},
}


def words(data: SmallData, folder: Path, *more: str) -> list[str]:
    settings = ["--experiment.seeds", "1..2", "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"]
    return ["fit", *data.arguments, *settings, "--experiment.output_dir", str(folder), *more]


def logged_steps(folder: Path, run: int) -> int:
    return len((folder / "flannel" / f"run_{run}" / "metrics.csv").read_text().splitlines()) - 1


@pytest.mark.parametrize("numbers", NUMBERED.values(), ids=NUMBERED)
def test_what_numbers_the_processes_of_a_team_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, str]
) -> None:
    kept = {
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_CPUS_ON_NODE": "2",
        "CUDA_VISIBLE_DEVICES": "3",
        "RANKING": "1",
    }
    for name, value in (numbers | kept).items():
        monkeypatch.setenv(name, value)
    rank_zero_only: Any = rank_zero.rank_zero_only
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    stand_alone()
    assert not numbers.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in kept} == kept
    assert rank_zero_only.rank == 0


@pytest.mark.parametrize("run", [["--experiment.run", "1"], []], ids=["one run", "all runs"])
def test_a_process_that_is_not_the_first_of_its_team_logs_all_the_same(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: list[str]
) -> None:
    for name, value in NUMBERED["srun"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero.rank_zero_only, "rank", 1)
    assert main(words(small_data, tmp_path, *run)) == 0
    assert logged_steps(tmp_path, 1) == 4


@pytest.mark.slow
def test_one_process_for_each_run_as_srun_starts_them(small_data: SmallData, tmp_path: Path) -> None:
    processes = []
    for run in range(2):
        numbers = {**NUMBERED["srun"], "SLURM_PROCID": str(run), "SLURM_LOCALID": str(run)}
        command = [sys.executable, "-m", "flannel_pl", *words(small_data, tmp_path)]
        command += ["--experiment.run", str(run), "--launch.threads_per_run", "1"]
        processes.append(subprocess.Popen(command, env={**os.environ, **numbers}))
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [logged_steps(tmp_path, run) for run in range(2)] == [4, 4]
    assert main(["gather", str(tmp_path / "flannel")]) == 0
