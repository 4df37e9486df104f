"""Which devices there are, which of them the config asks for, and how much memory they have free."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from flannel_pl.errors import UserError


def chosen_devices(config: dict[str, Any]) -> tuple[str, list[int | None]]:
    """Resolves `trainer.accelerator`, `trainer.devices` and `launch.devices`.

    Returns:
        `cpu`, `cuda` or `mps`, and the numbers of the devices the runs may use. The CPU has no numbers: there
        it is one None for every run that is to be trained side by side, and nothing where the config leaves
        that open.

    Raises:
        UserError: If a device is not there or a value has no meaning.
    """
    wanted, trainer = config["launch"]["devices"], config["trainer"]
    if wanted == "auto":
        wanted = trainer["devices"]
    elif trainer["devices"] not in ("auto", wanted):
        raise UserError(
            f"launch.devices is {wanted} and trainer.devices is {trainer['devices']}; they mean the same, so "
            "give one of them"
        )
    there = available_devices()
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = next(iter(there))
    elif accelerator == "gpu":
        accelerator = "mps" if "mps" in there else "cuda"
    if accelerator not in there:
        raise UserError(
            f"trainer.accelerator is {trainer['accelerator']}, but there is no such device here; there is "
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


def visible_name(device: int) -> str:
    """Translates the number of a CUDA device in this process into its name for a child process."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[device] if visible else str(device)


def num_cores() -> int:
    """Returns the cores this process may use; in a Slurm job no more than that has."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(cores, int(allotted)) if allotted.isdigit() else cores


def free_memory_bytes(accelerator: str, device: int | None) -> int | None:
    """Returns the memory that is free on a device, in bytes; None where nothing here can tell."""
    if accelerator == "cuda" and device is not None and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        command += [f"--id={visible_name(device)}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return (
            int(answer.stdout) * 2**20 if answer.returncode == 0 and answer.stdout.strip().isdigit() else None
        )
    if accelerator == "cpu" and sys.platform == "linux":
        # MemAvailable, not MemFree: the page cache, which recording fills, makes room when it is asked to.
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        known = [int(match[1]) * 1024 if match else None, _allotted_memory_bytes()]
        return min((num_bytes for num_bytes in known if num_bytes), default=None)
    return None


def _allotted_memory_bytes() -> int | None:
    """Returns the memory of the Slurm job that this process is in; None if there is no job or no limit."""
    per_node, per_cpu, cpus = (
        int(text) if (text := os.environ.get(f"SLURM_{name}", "")).isdigit() else 0
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    return (per_node or per_cpu * cpus) * 2**20 or None


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
