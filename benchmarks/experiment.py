"""A whole experiment, from the command to the closed file, next to the notebook's code at the same work."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.sizes import CONFIG, SIZES
from benchmarks.watch import PeakMemory, watch
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify

SKIP_STEPS = 10
"""Steps of a run that belong to its start."""

POLL_S = 0.05


@dataclass
class Command:
    """One `flannel-pl fit`, measured."""

    wall_s: float
    rate: float
    """Recorded steps of all runs per second, while all of them train."""

    peak_bytes: int
    """Of the worker that needed most."""

    rows_lost: int


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns wall times, rates, memory and lost rows.

    Args:
        options: `seeds`, `steps`, `repeats`, `notebook_repeats`, `size`, `accelerator`, `folder`.
    """
    on_cpu = options.accelerator == "cpu"
    slots = [options.seeds] if on_cpu else [1, 2, 4]
    theirs: list[tuple[float, float, int]] = []
    ours: dict[int, list[Command]] = {number: [] for number in slots}
    for repeat in range(options.repeats):
        if repeat < options.notebook_repeats:
            theirs.append(_notebook(options))
        for number in slots:
            ours[number].append(_command(options, slots=number, name=f"{number}-{repeat}"))
    work = f"{options.seeds} seeds x {options.steps} steps"
    their_wall_s = sum(wall_s for wall_s, _, _ in theirs) / len(theirs)
    their_rate = sum(rate for _, rate, _ in theirs) / len(theirs)
    figures = [
        Figure(f"the notebook, {work}, to its saved file", "s", [wall_s for wall_s, _, _ in theirs]),
        Figure("the notebook's steps per second", "", [rate for _, rate, _ in theirs]),
        Figure(f"the notebook's peak memory ({work})", "GB", [peak / 1e9 for _, _, peak in theirs]),
    ]
    for number, commands in ours.items():
        side = f"{number} runs side by side" if number > 1 else "one run at a time"
        figures += [
            Figure(f"flannel-pl, {work}, to the gathered file, {side}", "s", [c.wall_s for c in commands]),
            Figure(
                f"the same / the notebook's time, {side}",
                "",
                [command.wall_s / their_wall_s for command in commands],
                limit=0.30 if on_cpu else 0.10,
            ),
            Figure(f"flannel-pl's recorded steps per second, {side}", "", [c.rate for c in commands]),
            Figure(
                f"the same / the notebook's, {side}",
                "",
                [command.rate / their_rate for command in commands],
                limit=4.0 if on_cpu else None,
                bound=">=",
            ),
            Figure(
                f"peak memory of a worker, {side}",
                "GB",
                [command.peak_bytes / 1e9 for command in commands],
                limit=2.0 if on_cpu else None,
            ),
            Figure(f"rows lost, {side}", "", [c.rows_lost for c in commands], limit=0),
        ]
    return figures


def _notebook(options: argparse.Namespace) -> tuple[float, float, int]:
    """Returns the notebook's wall time in s, its steps per second, and its peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.notebook", "--size", options.size]
    command += ["--device", "cpu" if options.accelerator == "cpu" else "cuda"]
    command += ["--seeds", str(options.seeds), "--steps", str(options.steps)]
    command += ["--skip_steps", str(SKIP_STEPS), "--folder", str(options.folder)]
    began_s = time.monotonic()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall_s = time.monotonic() - began_s
    (options.folder / "notebook.safetensors").unlink()
    measured = json.loads(output.splitlines()[-1])
    steps_s = measured["steps_s"]
    return wall_s, len(steps_s) / sum(steps_s), measured["peak_bytes"]


def _command(options: argparse.Namespace, *, slots: int, name: str) -> Command:
    paths = ExperimentPaths(options.folder / name / "flannel3", "flannel3")
    began_s = time.monotonic()
    process = subprocess.Popen(fit_command(options, paths.folder.parent, slots), stdout=subprocess.DEVNULL)
    peak = PeakMemory(paths)
    try:
        runs = [paths.run(index) for index in range(options.seeds)]
        seen_s = watch(process, runs, poll_s=POLL_S, look=peak.look)
        wall_s = time.monotonic() - began_s
    finally:
        process.kill()  # changes nothing if it has ended
        process.wait()
    lost = _rows_lost(paths, num_rows=1 + options.steps, num_runs=options.seeds)
    _delete(paths)
    return Command(wall_s, _rate(seen_s[:slots]), peak.bytes, lost)


def fit_command(options: argparse.Namespace, output_dir: Path, slots: int) -> list[str]:
    """Returns the command of the experiment.

    Args:
        options: `seeds`, `steps`, `size`, `accelerator`.
        output_dir: Folder in which the experiment's own is made.
        slots: Runs trained side by side.
    """
    command = [sys.executable, "-m", "flannel_pl", "fit", "--config", str(CONFIG)]
    command += ["--experiment.output_dir", str(output_dir), *SIZES[options.size].arguments]
    command += ["--experiment.seeds", f"42..{41 + options.seeds}", "--trainer.max_steps", str(options.steps)]
    command += ["--trainer.accelerator", options.accelerator]
    if options.accelerator == "cpu":
        return [*command, "--trainer.devices", str(slots)]
    return [*command, "--trainer.devices", "1", "--launch.runs_per_device", str(slots)]


def _rate(seen_s: list[list[float]]) -> float:
    """Returns the steps per second of runs side by side, from when all have started until the first ends.

    Raises:
        SystemExit: If the runs were too short to have trained side by side.
    """
    from_s = max(times_s[SKIP_STEPS - 1] for times_s in seen_s)
    to_s = min(times_s[-1] for times_s in seen_s)
    if to_s <= from_s:
        raise SystemExit(f"the runs did not train side by side; give them more than {SKIP_STEPS} --steps")
    return sum(from_s < time_s <= to_s for times_s in seen_s for time_s in times_s) / (to_s - from_s)


def _rows_lost(paths: ExperimentPaths, *, num_rows: int, num_runs: int) -> int:
    """Returns how many rows of the gathered file are not there or not as their checksums say."""
    report = verify(paths.folder)
    if not report.ok:
        raise SystemExit(f"{paths.folder} was not recorded right; flannel-pl verify says what is wrong")
    rows = sum(part.num_rows for part in report.parts if part.path == paths.gathered)
    return num_rows * num_runs - rows


def _delete(paths: ExperimentPaths) -> None:
    """Frees the disk for the next repetition."""
    for path in (paths.gathered, *paths.folder.glob("run_*/recording.safetensors")):
        path.unlink()
