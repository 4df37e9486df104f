"""Where a figure was measured, without anything that names a person's machine: no path, no host."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from flannel_pl import provenance

RESULTS = Path(__file__).parent / "results"


def num_cores() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_name(accelerator: str) -> str:
    """Returns what the results of this machine are called, e.g. cpu2."""
    return f"{accelerator}{num_cores()}"


def is_plain(name: str) -> bool:
    """Tells whether `name` can be part of a file's name."""
    return re.fullmatch(r"[\w.-]+", name) is not None


def origin() -> dict[str, Any]:
    """Returns `versions`, `python`, `git` (commit and dirty) and `created` (UTC, ISO 8601)."""
    known = provenance.collect()
    return {key: known[key] for key in ("versions", "python", "git", "created")}


def device_name(accelerator: str) -> str:
    """Returns the model of the device, e.g. AMD EPYC or NVIDIA H200."""
    if accelerator == "gpu":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def load_average() -> float:
    """Returns how many processes wanted to run, on average, in the last minute."""
    return round(os.getloadavg()[0], 2)
