"""What a step takes: loops, a process with one thread each, that take turns."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.figures import Figure, ratios

NAMES = {
    "notebook": "a step of the notebook's loop, not recording",
    "notebook-recording": "a step of the notebook's loop, recording in memory",
    "plain": "a step of a plain torch loop, flannel-pl's arithmetic",
    "lightning": "a step of flannel-pl without its recorder",
    "lightning-recording": "a step of flannel-pl, recording to disk",
}
PAUSE_S = 0.3
"""Between two turns, so that what the last one left for the disk is on its way."""


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns the median step of every block of every loop, and the two ratios with a limit.

    Args:
        options: `num_blocks`, `block_steps`, `size`, `accelerator` and `folder`.
    """
    blocks_ms = in_turns(NAMES, options)
    on_cpu = options.accelerator == "cpu"
    return [
        *(Figure(name, "ms", blocks_ms[loop]) for loop, name in NAMES.items()),
        Figure(
            "recording: step with the recorder / without",
            "",
            ratios(blocks_ms["lightning-recording"], blocks_ms["lightning"]),
            limit=1.05 if on_cpu else None,
        ),
        Figure(
            "Lightning: step without the recorder / plain torch loop",
            "",
            ratios(blocks_ms["lightning"], blocks_ms["plain"]),
            limit=1.10 if on_cpu else None,
        ),
    ]


def in_turns(loops: Iterable[str], options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the median step, in ms, of every block of some of the loops."""
    with ExitStack() as stack:
        return take_turns({loop: start(loop, options, stack) for loop in loops}, options)


def beside(loop: str, checkouts: Iterable[Path], options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the median step, in ms, of every block of a loop, in several checkouts of this project."""
    with ExitStack() as stack:
        return take_turns({str(one): start(loop, options, stack, one) for one in checkouts}, options)


def take_turns(
    processes: Mapping[str, "subprocess.Popen[str]"], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Returns the median step of every block of every process, which train one after the other."""
    blocks = said_in_turns(processes, options)
    return {name: [statistics.median(times_ms) for times_ms in blocks[name]] for name in blocks}


def said_in_turns(
    processes: Mapping[str, "subprocess.Popen[str]"], options: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """Returns what every process says of each of its blocks; they train one after the other."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in processes}
    for name, process in processes.items():
        if _read(process) != "ready":
            logs = [path.read_text(encoding="utf-8") for path in options.folder.glob("*.log")]
            raise SystemExit(f"the loop {name} did not start: {''.join(logs)}")
    for _ in range(options.num_blocks):
        for name, process in processes.items():
            time.sleep(PAUSE_S)
            blocks[name].append(answer(process))
    return blocks


def start(
    loop: str, options: argparse.Namespace, stack: ExitStack, checkout: Path | None = None, *more: str
) -> "subprocess.Popen[str]":
    """Starts a loop of benchmarks/loops.py, of this checkout or another, which ends with the stack.

    Args:
        loop: Its name.
        options: As of `measure`.
        stack: Ends it.
        checkout: Whose code it is; None = this one's.
        more: Further arguments.
    """
    command = [sys.executable, "-m", "benchmarks.loops", loop, "--size", options.size]
    command += ["--device", "cpu" if options.accelerator == "cpu" else "cuda"]
    command += ["--num_blocks", str(options.num_blocks), "--block_steps", str(options.block_steps)]
    command += more
    name = loop if checkout is None else f"{loop}-{len(list(options.folder.glob('*.log')))}"
    log = stack.enter_context((options.folder / f"{name}.log").open("w"))  # what the libraries say
    own = {} if checkout is None else {"PYTHONPATH": str(checkout)}
    process = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=checkout,
            env=os.environ | own,
        )
    )
    stack.callback(process.kill)  # changes nothing if it has ended
    return process


def answer(process: "subprocess.Popen[str]") -> list[float]:
    """Has a process go on, and returns what it says at the end of that: of a turn, the steps in ms."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    said: list[float] = json.loads(_read(process))
    return said


def _read(process: "subprocess.Popen[str]") -> str:
    """Returns the next line of ours; what libraries print in between is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("ready", "[")):
            return line.strip()
    return ""  # it has ended
