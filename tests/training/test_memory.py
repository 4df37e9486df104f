"""Recording needs the same memory however long the run is, and about what the plan says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.config import Config
from flannel_pl.launch.memory import host_need

# VmHWM belongs to the process itself; ru_maxrss of a child starts at the size of its parent.
CODE = """
import re, sys
from pathlib import Path
from flannel_pl.__main__ import main
assert main(sys.argv[1:]) == 0
print("peak_kib", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(folder: Path, *, steps: int) -> int:
    """Peak resident memory of one run with the notebook's embedding, six tensors, and small batches."""
    command = ["fit", "--trainer.max_steps", str(steps), "--trainer.precision", "bf16-mixed"]
    command += ["--model.max_seq_len", "8", "--data.batch_size", "1", "--trainer.accelerator", "cpu"]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "10"]
    command += ["--experiment.output_dir", str(folder), "--experiment.gather", "none"]
    output = subprocess.check_output([sys.executable, "-c", CODE, *command], text=True)
    return 1024 * int(output.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_peak_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    peak_bytes(tmp_path / "first", steps=1)  # prepares the corpus, which takes more memory than training
    short, long = peak_bytes(tmp_path / "short", steps=30), peak_bytes(tmp_path / "long", steps=300)
    recorded = (tmp_path / "long" / "flannel" / "run_0" / "recording.safetensors").stat().st_size
    assert recorded > 1.5e9, "the test has to record far more than the memory it allows"
    record = json.loads((tmp_path / "long" / "flannel" / "experiment.json").read_text())
    estimate = host_need(Config.of(record["config"]), accelerator="cpu", where="apart").of(1)
    assert estimate / 1.35 < long < 1.35 * estimate, (
        f"{long / 2**20:.0f} MiB, estimated {estimate / 2**20:.0f}"
    )
    assert abs(long - short) < 48 * 2**20, f"{short / 2**20:.0f} MiB for 30 steps, {long / 2**20:.0f} for 300"
