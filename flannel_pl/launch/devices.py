"""Which devices there are, which of them the config asks for, and how much memory they have free."""

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.launch.cgroups import Limit, core_limit, memory_limit

NVIDIA_SMI_TIMEOUT_S = 30.0

MEMORY_FACTS = Path("/proc/meminfo")
"""Where Linux says how much memory is free."""


def chosen_devices(config: Config) -> tuple[str, list[int | None]]:
    """Resolves `trainer.accelerator`, `trainer.devices` and `launch.devices`.

    Returns:
        `cpu`, `cuda` or `mps`, and the numbers of the devices the runs may use. The CPU has no numbers: there
        it is one None for every run that is to be trained side by side, and nothing where the config leaves
        that open.

    Raises:
        UserError: If a device is not there or a value has no meaning.
    """
    trainer = config.trainer
    wanted: list[int] | str | int = config.launch.devices
    if wanted == "auto":
        wanted = trainer.devices
    elif trainer.devices not in ("auto", wanted):
        raise UserError(
            f"launch.devices is {wanted} and trainer.devices is {trainer.devices}; they mean the same, so "
            "give one of them"
        )
    there = available_devices()
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = next(iter(there))
    elif accelerator == "gpu":
        accelerator = "mps" if "mps" in there else "cuda"
    if accelerator not in there:
        raise UserError(
            f"trainer.accelerator is {trainer.accelerator}, but there is no such device here; there is "
            f"{', '.join(f'{name} ({count})' for name, count in there.items())}"
        )
    return accelerator, _numbers(_parsed(wanted), accelerator, there[accelerator])


def available_devices() -> dict[str, int]:
    """Returns accelerator -> number of devices, the preferred one first. Starts no context on any of them."""
    import torch

    found = {}
    if num_cuda := torch.cuda.device_count():
        found["cuda"] = num_cuda
    if torch.backends.mps.is_available():
        found["mps"] = 1
    return {**found, "cpu": 1}


def number_like_nvidia_smi() -> None:
    """Has CUDA number its devices by their place on the bus, here and in the processes started from here.

    By its own order, the fastest first, nobody can tell which device is which without a context on them. An
    order that was asked for stays.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def seen_alone(device: int) -> dict[str, str]:
    """Returns the environment in which a child process sees one of the CUDA devices of this process only.

    Args:
        device: Its number in this process.
    """
    import torch

    # Where torch is built for AMD's devices, the first name is the one that counts if both are set.
    variables = ["HIP_VISIBLE_DEVICES"] * bool(torch.version.hip) + ["CUDA_VISIBLE_DEVICES"]
    name = visible_name(device, next((name for name in variables if name in os.environ), variables[0]))
    order = {name: value for name, value in os.environ.items() if name == "CUDA_DEVICE_ORDER"}
    return {**dict.fromkeys(variables, name), **order}


def visible_name(device: int, variable: str = "CUDA_VISIBLE_DEVICES") -> str:
    """Translates the number of a CUDA device in this process into its name for a child process.

    Args:
        device: The number.
        variable: The environment variable that says what this process sees.

    Returns:
        A number, or what begins with GPU- or MIG-.
    """
    names = []
    for name in os.environ.get(variable, "").split(","):
        if not name.strip() or name.strip().startswith("-"):
            break  # which hides it and all behind it
        names.append(name.strip())
    return names[device] if device < len(names) else str(device)


def available_cores() -> Limit:
    """Returns how many cores this process may use: 1 at least, and maybe 2.5."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    number = len(affinity(0)) if affinity else os.cpu_count() or 1
    limits = [Limit(number, "the cores that this process may run on"), core_limit()]
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdigit():
        limits.append(Limit(int(allotted), "SLURM_CPUS_ON_NODE"))
    narrowest = min((limit for limit in limits if limit is not None), key=lambda limit: limit.amount)
    return Limit(max(1, narrowest.amount), narrowest.source)


def num_cores() -> int:
    """Returns the whole cores this process may use; in a container or a Slurm job no more than that has."""
    return int(available_cores().amount)


def free_memory() -> Limit | None:
    """Returns the bytes of memory that are free on this host; None where nothing here can tell."""
    limits = [memory_limit(), _allotted_memory()]
    with contextlib.suppress(OSError):  # not Linux, or nothing of /proc is to be seen here
        # MemAvailable, not MemFree: the page cache, which recording fills, makes room when it is asked to.
        match = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY_FACTS.read_text())
        limits.append(Limit(int(match[1]) * 1024, "what this host has available") if match else None)
    known = (limit for limit in limits if limit is not None)
    return min(known, key=lambda limit: limit.amount, default=None)


def _allotted_memory() -> Limit | None:
    """Returns the memory of the Slurm job that this process is in; None if there is no job or no limit."""
    per_node, per_cpu, cpus = (
        int(text) if (text := os.environ.get(f"SLURM_{name}", "")).isdigit() else 0
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    num_bytes = (per_node or per_cpu * cpus) * 2**20
    source = "SLURM_MEM_PER_NODE" if per_node else "SLURM_MEM_PER_CPU"
    return Limit(num_bytes, source) if num_bytes else None


def free_device_memory(accelerator: str, devices: Sequence[int | None]) -> dict[int, int]:
    """Returns the number of a device -> its free memory in bytes, without those of which nothing tells it.

    Args:
        accelerator: What kind of device they are.
        devices: Their numbers in this process.
    """
    if accelerator != "cuda":
        return {}
    gpus, found = _nvidia_smi(), {}
    for device in devices:
        assert device is not None
        name = visible_name(device)
        # Numbers are nvidia-smi's own only in the order of places; what is named MIG- it does not list.
        is_same = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(gpus) == 1
        for index, uuid, mig, free_mib in gpus:
            is_it = (is_same and index == name) if name.isdigit() else uuid.startswith(name)
            if is_it and mig != "Enabled" and free_mib.isdigit():
                found[device] = int(free_mib) * 2**20
    return found


def _nvidia_smi() -> list[list[str]]:
    """Returns index, UUID, MIG mode and free memory in MiB of every GPU; nothing where it does not answer."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,mig.mode.current,memory.free"]
    try:
        answer = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=NVIDIA_SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [fields for line in lines if len(fields := [field.strip() for field in line.split(",")]) == 4]


def _parsed(wanted: Any) -> Any:
    """Reads what Lightning allows as text: "2" or "0,2"."""
    if not isinstance(wanted, str) or wanted == "auto":
        return wanted
    try:
        numbers = [int(number) for number in wanted.split(",")]
    except ValueError:
        raise UserError(f"devices is {wanted!r}, expected auto, a number, or ids such as [0, 2]") from None
    return numbers if "," in wanted else numbers[0]


def _numbers(wanted: Any, accelerator: str, count: int) -> list[int | None]:
    if accelerator == "cpu":
        # Lightning's meaning of `devices` on the CPU: that many processes.
        if wanted == "auto":
            return []
        if not isinstance(wanted, int) or wanted < 1:
            raise UserError(
                f"devices is {wanted}, expected on the CPU a number of runs side by side, or auto"
            )
        return [None] * wanted
    if wanted in ("auto", -1):
        return list(range(count))
    ids = list(range(wanted)) if isinstance(wanted, int) else list(wanted)
    if not ids or len(set(ids)) < len(ids) or not all(0 <= number < count for number in ids):
        raise UserError(
            f"devices is {wanted}, but of {accelerator} there is only {list(range(count))}; give fewer, or "
            "auto"
        )
    return list(ids)
