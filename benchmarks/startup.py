"""How long a free slot waits for the first step of its next run, measured on real `flannel-pl fit` commands.

The processes are watched from outside. A run's first step counts once its row is in the recording: the file
is preallocated with zeros, and looked at every 10 ms. Starts and ends are the launcher's own, from
events.jsonl. Both use the system's monotonic clock, so their times can be subtracted.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flannel_pl
from benchmarks import machine
from benchmarks.figures import Figure
from benchmarks.sizes import CONFIG, SIZES
from benchmarks.watch import watch
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.events import read_events
from flannel_pl.recording.writing.journal import Journal

LIMIT_S = 1.5
"""What a free slot may take to the next run's first step; on a CPU."""

POLL_S = 0.01
NUM_SLOTS = 2
STEPS = 10
"""Steps of a run, in the benchmark of everything."""


@dataclass(frozen=True)
class Launch:
    """One command, measured; every list in the order of the starts, in seconds."""

    command_to_first_step_s: float
    free_to_first_step_s: list[float]
    """From `run_finished` of the run before on a slot to the first step of the next."""

    free_to_start_s: list[float]
    """The part of it until the launcher has started the next run's process."""

    done_to_free_s: list[float]
    """What comes before it: from a finished recording to the end of its process, for every run."""


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns how long first steps took to come, as a part of `make bench`.

    Args:
        options: `repeats`, `startup_runs`, `size`, `accelerator`, `folder`.
    """
    ours = argparse.Namespace(
        runs=max(options.startup_runs, NUM_SLOTS + 1), steps=STEPS, accelerator=options.accelerator
    )
    launches = []
    for repeat in range(options.repeats):
        paths = ExperimentPaths(options.folder / f"startup-{repeat}" / "flannel3", "flannel3")
        launches.append(_measure(_command("fit", options.size, paths.folder.parent, ours), paths, ours.runs))
    return [
        Figure("command to first step", "s", [launch.command_to_first_step_s for launch in launches]),
        Figure(
            "free slot to the next run's first step",
            "s",
            [value for launch in launches for value in launch.free_to_first_step_s],
            limit=LIMIT_S,
        ),
    ]


def main() -> None:
    """Measures each size, prints a table and writes every value to a JSON file."""
    options = _options()
    values: dict[str, dict[str, list[float]]] = {}
    device = ""
    with tempfile.TemporaryDirectory(prefix="startup-", dir=options.folder) as folder:
        for size in SIZES:
            subprocess.run(
                _command("plan", size, Path(folder), options), check=True, stdout=subprocess.DEVNULL
            )
        for repeat in range(options.repeats):
            for size in SIZES:
                paths = ExperimentPaths(Path(folder) / f"{size}-{repeat}" / "flannel3", "flannel3")
                launch = _measure(_command("fit", size, paths.folder.parent, options), paths, options.runs)
                for name, measured in vars(launch).items():
                    several = measured if isinstance(measured, list) else [measured]
                    values.setdefault(size, {}).setdefault(name, []).extend(several)
        with flannel_pl.open_recording(paths.run(0).recording) as recording:
            device = recording.metadata["provenance"]["device_name"]
    print(_table(values))
    _write(options, values, device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--machine", help="name in the result's file name (default: e.g. cpu2)")
    parser.add_argument("--runs", type=int, default=6, help=f"runs of a command, on {NUM_SLOTS} slots")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="commands per size")
    parser.add_argument("--folder", type=Path, help="where to record (default: the temporary folder)")
    options = parser.parse_args()
    options.machine = options.machine or machine.default_name(options.accelerator)
    if options.runs <= NUM_SLOTS or options.steps < 2 or options.repeats < 1:
        parser.error(f"need more than {NUM_SLOTS} runs, at least 2 steps and 1 repeat")
    if not machine.is_plain(options.machine):
        parser.error(f"--machine is {options.machine!r}, expected a plain name")
    return options


def _command(verb: str, size: str, output_dir: Path, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "flannel_pl", verb, "--config", str(CONFIG), *SIZES[size].arguments]
    command += ["--experiment.output_dir", str(output_dir), "--experiment.seeds", f"1..{options.runs}"]
    command += ["--trainer.max_steps", str(options.steps), "--trainer.accelerator", options.accelerator]
    if options.accelerator == "cpu":
        return [*command, "--trainer.devices", str(NUM_SLOTS)]
    slots = ["--trainer.devices", "1", "--launch.runs_per_device", str(NUM_SLOTS)]
    return [*command, *slots]


def _measure(command: list[str], paths: ExperimentPaths, num_runs: int) -> Launch:
    """Runs one command to its end and returns what of its time was spent on starting."""
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        seen_s = watch(process, [paths.run(index) for index in range(num_runs)], poll_s=POLL_S)
    finally:
        process.kill()  # changes nothing if it has ended
        process.wait()
    events = read_events(paths.events)
    free_to_first_step_s, free_to_start_s = [], []
    for run, free_s, start_s in _takeovers(events):
        free_to_first_step_s.append(seen_s[run][0] - free_s)
        free_to_start_s.append(start_s - free_s)
    return Launch(
        command_to_first_step_s=min(times_s[0] for times_s in seen_s) - began_s,
        free_to_first_step_s=free_to_first_step_s,
        free_to_start_s=free_to_start_s,
        done_to_free_s=_endings(events, paths),
    )


def _takeovers(events: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """Returns (run, when its slot became free, when it was started) for all but each slot's first run.

    The log does not tell the slots of one device apart; the launcher gives them out in the order they
    became free in.
    """
    free_s: deque[float] = deque()
    found = []
    for event in events:
        if event["event"] == "run_finished":
            free_s.append(event["monotonic_s"])
        elif event["event"] == "run_started" and free_s:
            found.append((event["run"], free_s.popleft(), event["monotonic_s"]))
    return found


def _endings(events: list[dict[str, Any]], paths: ExperimentPaths) -> list[float]:
    """Returns how long each run's process lived on after its journal said done."""
    lengths_s = []
    for event in events:
        if event["event"] == "run_finished":
            entry = Journal(paths.run(event["run"]).journal).read()
            assert entry is not None
            end_s = datetime.datetime.fromisoformat(event["time"]).timestamp()
            lengths_s.append(end_s - entry.updated_s)
    return lengths_s


def _table(values: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| sizes | seconds | median | least | most | values |", "|---|---|---|---|---|---|"]
    for size, measured in values.items():
        for name, numbers in measured.items():
            words = name.removesuffix("_s").replace("_", " ")
            lines.append(
                f"| {size} | {words} | {statistics.median(numbers):.2f} | {min(numbers):.2f} "
                f"| {max(numbers):.2f} | {len(numbers)} |"
            )
    for size, measured in values.items():
        number = statistics.median(measured["free_to_first_step_s"])
        verdict = "within" if number <= LIMIT_S else "above"
        lines += ["", f"{size}: free to first step {number:.2f} s, {verdict} the limit of {LIMIT_S} s"]
    return "\n".join(lines)


def _write(options: argparse.Namespace, values: dict[str, dict[str, list[float]]], device: str) -> None:
    result = {
        **machine.origin(),
        **{"accelerator": options.accelerator, "device": device, "cores": machine.num_cores()},
        **{"slots": NUM_SLOTS, "runs": options.runs, "steps": options.steps, "limit_s": LIMIT_S},
        "median_s": {
            size: {name: round(statistics.median(numbers), 3) for name, numbers in measured.items()}
            for size, measured in values.items()
        },
        "values_s": {
            size: {name: [round(number, 3) for number in numbers] for name, numbers in measured.items()}
            for size, measured in values.items()
        },
    }
    path = machine.RESULTS / f"startup-{options.machine}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {path.name}")


if __name__ == "__main__":
    main()
