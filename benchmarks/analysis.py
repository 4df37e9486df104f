"""How fast a report is made of recorded embeddings, and in how much memory."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.recordings import record
from benchmarks.watch import peak_bytes

NUM_RUNS = 2
POLL_S = 0.02


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns throughput and peak memory of `flannel-pl report`, the whole process.

    Args:
        options: `report_steps`, `repeats`, `size`, `folder`.
    """
    paths = record(
        options.folder / "analysis",
        size=options.size,
        seeds=f"42..{41 + NUM_RUNS}",
        steps=options.report_steps,
        tensors="[embeddings, losses]",
    )
    num_mb = sum(paths.run(index).recording.stat().st_size for index in range(NUM_RUNS)) / 1e6
    measuring, whole, again_s, peaks_gb = [], [], [], []
    for _ in range(options.repeats):
        shutil.rmtree(paths.folder / "report", ignore_errors=True)
        first_s, peak = _report(paths.folder)
        second_s, _ = _report(paths.folder)
        measuring.append(num_mb / (first_s - second_s))
        whole.append(num_mb / first_s)
        again_s.append(second_s)
        peaks_gb.append(peak / 1e9)
    what = f"report of {NUM_RUNS} x {num_mb / NUM_RUNS:.3g} MB of embeddings"
    return [
        Figure(f"{what}, measuring", "MB/s", measuring, limit=100, bound=">="),
        Figure(f"{what}, the whole process", "MB/s", whole),
        Figure(f"{what}, peak memory", "GB", peaks_gb, limit=1),
        Figure("the same again, nothing has changed", "s", again_s),
    ]


def _report(folder: Path) -> tuple[float, int]:
    """Returns the wall time in s and the peak of resident memory in bytes."""
    began_s = time.monotonic()
    command = [sys.executable, "-m", "flannel_pl", "report", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:  # a peak that is over is seen too, as the kernel keeps it
        peak = max(peak, peak_bytes(str(process.pid)))
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"flannel-pl report ended with {process.returncode}")
    return time.monotonic() - began_s, peak
