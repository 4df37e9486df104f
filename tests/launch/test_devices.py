"""What devices are called inside and outside, and how much memory each has; with a made-up nvidia-smi."""

import os
import sys
from pathlib import Path

import pytest
import torch

from flannel_pl.launch import devices
from flannel_pl.launch.cgroups import Limit
from flannel_pl.launch.devices import (
    available_cores,
    free_device_memory,
    free_memory,
    num_cores,
    number_like_nvidia_smi,
    seen_alone,
    visible_name,
)

MIB = 2**20

GPUS = """\
0, GPU-aaaa1111-0000, Disabled, 1000
1, GPU-bbbb2222-0000, Disabled, 2000
2, GPU-cccc3333-0000, [N/A], 3000
3, GPU-dddd4444-0000, Enabled, 4000
4, GPU-eeee5555-0000, Disabled, [N/A]
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith("_VISIBLE_DEVICES") or name.startswith("SLURM_") or name == "CUDA_DEVICE_ORDER":
            monkeypatch.delenv(name)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script on the PATH that answers as nvidia-smi would; its text can be replaced."""
    script = tmp_path / "nvidia-smi"
    answer(script, f"cat <<'END'\n{GPUS}END")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return script


def answer(script: Path, code: str) -> None:
    expected = "--query-gpu=index,uuid,mig.mode.current,memory.free --format=csv,noheader,nounits"
    script.write_text(f'#!/bin/sh\n[ "$*" = "{expected}" ] || exit 3\n{code}\n')


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, ["0", "1", "2"]),
        ("0, 1", ["0", "1"]),
        (" 2 ,\t0 ", ["2", "0"]),
        ("1,2,", ["1", "2"]),
        ("3,-1,4", ["3"]),
        ("GPU-bbbb, GPU-aaaa1111-0000", ["GPU-bbbb", "GPU-aaaa1111-0000"]),
        ("MIG-1234-5678,MIG-9abc", ["MIG-1234-5678", "MIG-9abc"]),
    ],
)
def test_devices_by_their_names_outside(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, names: list[str]
) -> None:
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [visible_name(number) for number in range(len(names))] == names
    assert [seen_alone(number) for number in range(len(names))] == [
        {"CUDA_VISIBLE_DEVICES": name} for name in names
    ]


@pytest.mark.parametrize("variable", ["-1", ""])
def test_no_device_is_seen(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)  # torch counts them once
    assert "cuda" not in devices.available_devices()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"HIP_VISIBLE_DEVICES": "4, 6"}, "6"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({"HIP_VISIBLE_DEVICES": "4,6", "CUDA_VISIBLE_DEVICES": "0,1"}, "6"),
        ({"ROCR_VISIBLE_DEVICES": "4,6"}, "1"),  # which is applied before and renumbers the devices
        ({}, "1"),
    ],
)
def test_amd_devices(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert seen_alone(1) == {"HIP_VISIBLE_DEVICES": name, "CUDA_VISIBLE_DEVICES": name}


@pytest.mark.parametrize(
    ("variable", "free_mib"),
    [
        (None, {0: 1000, 1: 2000, 2: 3000}),
        ("2, 0", {0: 3000, 1: 1000}),
        ("GPU-bbbb2222-0000,GPU-aaaa", {0: 2000, 1: 1000}),
        ("MIG-cccc,MIG-dddd", {}),
        ("3,1,4", {1: 2000}),
    ],
)
def test_every_device_is_asked_for_its_memory(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, free_mib: dict[int, int]
) -> None:
    number_like_nvidia_smi()
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = free_device_memory("cuda", list(range(len((variable or "0,1,2").split(",")))))
    assert found == {number: mib * MIB for number, mib in free_mib.items()}
    monkeypatch.delenv("CUDA_DEVICE_ORDER")


def test_in_cudas_own_order_numbers_tell_nothing(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    number_like_nvidia_smi()
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST", "somebody wants that"
    assert free_device_memory("cuda", [0, 1]) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb2222-0000")
    assert free_device_memory("cuda", [0]) == {0: 2000 * MIB}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    answer(nvidia_smi, "echo 0, GPU-aaaa1111-0000, Disabled, 1000")
    assert free_device_memory("cuda", [0]) == {0: 1000 * MIB}, "there is only this one"


@pytest.mark.parametrize(
    "code", ["exit 9", "echo nonsense", "printf '\\377, x'", "sleep 20", "exec /nowhere"]
)
def test_a_broken_nvidia_smi_tells_nothing(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(devices, "NVIDIA_SMI_TIMEOUT_S", 0.3)
    answer(nvidia_smi, code)
    assert free_device_memory("cuda", [0, 1]) == {}


def test_without_nvidia_smi_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_device_memory("cuda", [0]) == {}
    assert free_device_memory("mps", [0]) == {}
    assert free_device_memory("cpu", []) == {}


@pytest.mark.parametrize(("quota", "whole"), [(0.5, 1), (1.0, 1), (2.5, 2), (None, 8), (64.0, 8)])
def test_cores_of_a_container(monkeypatch: pytest.MonkeyPatch, quota: float | None, whole: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "core_limit", lambda: None if quota is None else Limit(quota, "cpu.max"))
    assert num_cores() == whole
    assert (available_cores().source == "cpu.max") is (quota is not None and quota < 8)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert num_cores() == 1


def test_the_narrowest_limit_of_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_limit", lambda: None)
    host = free_memory()
    monkeypatch.setattr(devices, "memory_limit", lambda: Limit(1, "memory.max"))
    assert free_memory() == Limit(1, "memory.max")
    monkeypatch.setattr(devices, "memory_limit", lambda: Limit(2**60, "memory.max"))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "7")
    assert free_memory() == Limit(7 * MIB, "SLURM_MEM_PER_NODE")
    assert host is None or host.source == "what this host has available"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_system_that_tells_nothing_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(devices, "MEMORY_FACTS", tmp_path / "not there")
    monkeypatch.setattr(devices, "core_limit", lambda: None)
    monkeypatch.setattr(devices, "memory_limit", lambda: None)
    assert num_cores() == (os.cpu_count() or 1)
    assert free_memory() is None
