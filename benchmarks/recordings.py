"""Recordings to measure on, made quickly: batches of one short window, since only the rows count."""

import subprocess
import sys
from pathlib import Path

from benchmarks.sizes import CONFIG, SIZES
from flannel_pl.experiment import ExperimentPaths


def record(output_dir: Path, *, size: str, seeds: str, steps: int, tensors: str = "") -> ExperimentPaths:
    """Makes an experiment with the notebook's rows.

    Args:
        output_dir: Where its folder goes.
        size: A key of `SIZES`.
        seeds: E.g. "42..43".
        steps: Of each run.
        tensors: To record, e.g. "[embeddings]"; empty = the notebook's.
    """
    command = [sys.executable, "-m", "flannel_pl", "fit", "--config", str(CONFIG)]
    command += ["--model.hidden_dim", str(SIZES[size].hidden_dim)]
    command += ["--model.max_seq_len", "8", "--data.batch_size", "1", "--trainer.accelerator", "cpu"]
    command += ["--experiment.seeds", seeds, "--trainer.max_steps", str(steps)]
    command += ["--experiment.output_dir", str(output_dir), "--experiment.gather", "none"]
    command += ["--trainer.enable_progress_bar", "false"]
    command += ["--recorder.tensors", tensors] if tensors else []
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return ExperimentPaths(output_dir / "flannel3", "flannel3")
