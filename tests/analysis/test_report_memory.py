"""A report of a recording that is far larger than the memory it takes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

NUM_TOKENS, DIM = 10_000, 64

CHILD = """
import sys
from flannel_pl.__main__ import main
assert main(["report", sys.argv[1]]) == 0
print(open("/proc/self/status").read())
"""


def peak_bytes(folder: Path, *, num_rows: int) -> int:
    """Returns the peak of resident memory of `flannel-pl report`, of two runs with the notebook's rows."""
    torch.manual_seed(0)
    tensors = {}
    for run in range(2):
        W = torch.empty(num_rows, NUM_TOKENS, DIM, dtype=torch.bfloat16).normal_(0, 0.02)
        tensors[f"run_{run}_embeddings"] = W
        tensors[f"run_{run}_recorded_steps"] = torch.arange(num_rows)
    folder.mkdir()
    save_file(tensors, folder / "r.safetensors")
    del tensors
    printed = subprocess.check_output([sys.executable, "-c", CHILD, folder / "r.safetensors"], text=True)
    (folder / "r.safetensors").unlink()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", printed)[0])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    small = peak_bytes(tmp_path / "small", num_rows=50)
    large = peak_bytes(tmp_path / "large", num_rows=400)  # 1.02 GB
    assert large < 1e9
    assert large - small < 50e6
