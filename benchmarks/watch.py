"""Looks at an experiment from outside while it runs: which rows are there, how much memory its runs take."""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.launch.events import read_events

TIMEOUT_S = 3600.0


def watch(
    process: "subprocess.Popen[bytes]",
    runs: Sequence[RunPaths],
    *,
    poll_s: float,
    look: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Waits for the end of a `flannel-pl fit`.

    Args:
        process: The command.
        runs: Its runs.
        poll_s: Seconds between two looks.
        look: Called at every look.

    Returns:
        For each run the time (`time.monotonic`) at which the row of each step, from 1, was first seen.
    """
    seen_s: list[list[float]] = [[] for _ in runs]
    deadline_s = time.monotonic() + TIMEOUT_S
    ended = False
    while not ended:
        ended = process.poll() is not None  # before the last look
        for run, times_s in zip(runs, seen_s, strict=True):
            times_s += [time.monotonic()] * (_num_steps(run, at_least=len(times_s)) - len(times_s))
        look()
        if time.monotonic() > deadline_s:
            raise SystemExit(f"the command is not done after {TIMEOUT_S:.0f} s")
        time.sleep(poll_s)
    if process.returncode != 0 or not all(seen_s):
        raise SystemExit(
            f"the command ended with {process.returncode}; steps seen of each run: {list(map(len, seen_s))}"
        )
    return seen_s


def _num_steps(run: RunPaths, *, at_least: int) -> int:
    """Returns how many steps are in a recording, which is preallocated with zeros."""
    for path in (run.partial, run.recording):
        try:
            with safe_open(path, framework="numpy") as file:
                steps = file.get_tensor("recorded_steps")
        except (FileNotFoundError, SafetensorError):  # not there yet, or its header is not
            continue
        num = at_least
        while num + 1 < len(steps) and steps[num + 1] == num + 1:
            num += 1
        return num
    return at_least


class PeakMemory:
    """The largest peak of resident memory among an experiment's runs.

    Args:
        paths: The experiment.
    """

    def __init__(self, paths: ExperimentPaths) -> None:
        self.paths = paths
        self.bytes = 0

    def look(self) -> None:
        """Looks at every run that is alive; a peak that is over is seen too, as the kernel keeps it."""
        for event in read_events(self.paths.events):
            if event["event"] == "run_started":
                self.bytes = max(self.bytes, peak_bytes(str(event["pid"])))


def peak_bytes(pid: str) -> int:
    """Returns the peak of a process's resident memory (VmHWM); 0 if it is gone.

    Args:
        pid: Its number, or "self".
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(match[1]) if match else 0
