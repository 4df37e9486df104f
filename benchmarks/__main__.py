"""Measures what flannel-pl promises, next to the notebook's code, on this machine; `make bench` runs it all.

Writes every value to results/MACHINE.json and, with --pages, the table to docs/benchmarks.md and three ratios
to README.md. Nothing else should run on the machine.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import analysis, disk, experiment, live, machine, peers, quantities, startup, steps
from benchmarks.figures import RATIOS, TABLE, Figure, measured_on_gpus, put_into, table, telling_ratios
from benchmarks.sizes import SIZES

PARTS: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "steps": steps.measure,
    "live": live.measure,
    "quantities": quantities.measure,
    "experiment": experiment.measure,
    "startup": startup.measure,
    "disk": disk.measure,
    "analysis": analysis.measure,
    "peers": peers.measure,
}
ROOT = machine.RESULTS.parents[1]


def main(arguments: list[str] | None = None) -> None:
    """Measures the parts that are asked for and writes them beside those that were measured before."""
    options = _options(arguments)
    path = options.results / f"{options.machine}.json"
    result: dict[str, Any] = {
        "machine": options.machine,
        "device": machine.device_name(options.accelerator),
        "accelerator": options.accelerator,
        "cores": machine.num_cores(),
        "parts": json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {},
    }
    asked = {key: value for key, value in vars(options).items() if isinstance(value, (str, int))}  # no paths
    for name in options.only or PARTS:
        print(f"measuring: {name}", file=sys.stderr)
        load = machine.load_average()
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            figures = PARTS[name](argparse.Namespace(**{**vars(options), "folder": Path(folder)}))
        result["parts"][name] = {
            **machine.origin(),
            "load_average_before": load,
            "options": asked,
            "figures": [figure.as_json() for figure in figures],
        }
        result["parts"] = {part: result["parts"][part] for part in PARTS if part in result["parts"]}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = table(result, on_gpus=measured_on_gpus(options.results))
    print(shown)
    if options.pages:
        put_into(ROOT / "docs" / "benchmarks.md", TABLE, shown)
        put_into(ROOT / "README.md", RATIOS, telling_ratios(result))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, help="parts to measure; the others keep what they had")
    add("--accelerator", choices=("cpu", "gpu"), default="cpu")
    add("--machine", help="name of the results file (default: e.g. cpu2)")
    add("--size", choices=SIZES, default="notebook")
    add("--num_blocks", type=int, default=7, help="steps: turns of every loop")
    add("--block_steps", type=int, default=8, help="steps: training steps of a turn")
    add("--seeds", type=int, help="experiment: its seeds (default: 2, on a GPU 10)")
    add("--steps", type=int, help="experiment: steps of each (default: 60, on a GPU 1000)")
    add("--notebook_repeats", type=int, default=1, help="experiment: how often the notebook is run")
    add("--shard_steps", type=int, default=1000, help="disk: steps in the recording")
    add("--report_steps", type=int, default=500, help="analysis: steps of each of the two runs")
    add("--startup_runs", type=int, default=6, help="startup: runs of a command")
    add("--repeats", type=int, default=3, help="of everything else")
    add("--folder", type=Path, help="where to record (default: the temporary folder)")
    add("--results", type=Path, default=machine.RESULTS, help="where the results go")
    add("--pages", action="store_true", help="write the table into docs/benchmarks.md, ratios into README.md")
    options = parser.parse_args(arguments)
    on_gpu = options.accelerator == "gpu"
    options.machine = options.machine or machine.default_name(options.accelerator)
    options.seeds = options.seeds or (10 if on_gpu else 2)
    options.steps = options.steps or (1000 if on_gpu else 60)
    if not machine.is_plain(options.machine):
        parser.error(f"--machine is {options.machine!r}, expected a plain name")
    counts = (
        "num_blocks",
        "block_steps",
        "seeds",
        "notebook_repeats",
        "shard_steps",
        "report_steps",
        "repeats",
    )
    for name in (name for name in counts if getattr(options, name) < 1):
        parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    if options.steps <= experiment.SKIP_STEPS:
        parser.error(f"--steps is {options.steps}, expected more than {experiment.SKIP_STEPS}")
    if on_gpu:
        _check_gpu(parser)
    return options


def _check_gpu(parser: argparse.ArgumentParser) -> None:
    import torch

    if not torch.cuda.is_available():
        parser.error("--accelerator is gpu, but torch sees no CUDA device here; nothing was measured")


if __name__ == "__main__":
    main()
