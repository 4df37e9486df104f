"""Reports and comparisons of a recording that is far larger than the memory they take."""

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
assert main(sys.argv[1:]) in (0, 1)  # recordings that differ are 1
print(open("/proc/self/status").read())
"""


def peak_bytes(folder: Path, *, num_rows: int, words: list[str]) -> int:
    """Returns the peak of resident memory of a verb on two runs with the notebook's rows.

    Args:
        folder: For the recording.
        num_rows: Of each run.
        words: Of the command; FILE stands for the recording, PNG for a picture beside it.
    """
    torch.manual_seed(0)
    tensors = {}
    for run in range(2):
        W = torch.empty(num_rows, NUM_TOKENS, DIM, dtype=torch.bfloat16).normal_(0, 0.02)
        tensors[f"run_{run}_embeddings"] = W
        tensors[f"run_{run}_recorded_steps"] = torch.arange(num_rows)
    if "--animation" in words:  # which follows dead tokens
        dead_mask = torch.arange(NUM_TOKENS) < 3699
        tensors |= {"dead_mask": dead_mask, "live_mask": ~dead_mask}
    folder.mkdir()
    path = folder / "r.safetensors"
    save_file(tensors, path)
    del tensors
    files = {"FILE": str(path), "PNG": str(folder / "picture.png")}
    command = [sys.executable, "-c", CHILD, *(files.get(word, word) for word in words)]
    printed = subprocess.check_output(command, text=True)
    path.unlink()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", printed)[0])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(
    ("words", "most_bytes"),
    [
        (["report", "FILE"], 1e9),
        (["report", "FILE", "--animation", "PNG"], 1e9),
        (["compare", "FILE", "FILE", "--runs", "0:1"], 100e6),
        (["compare", "FILE", "FILE", "--runs", "0:1", "--plot", "PNG"], 120e6),
    ],
    ids=["report", "report-animation", "compare", "compare-plot"],
)
def test_memory_does_not_grow_with_the_recording(tmp_path: Path, words: list[str], most_bytes: float) -> None:
    few = 200 if "--animation" in words else 50  # it has as many frames as 400 rows, but for a few
    small = peak_bytes(tmp_path / "small", num_rows=few, words=words)
    large = peak_bytes(tmp_path / "large", num_rows=400, words=words)  # 1.02 GB
    print(f"{small / 1e6:.0f} MB of {few} rows, {large / 1e6:.0f} MB of 400")
    assert large < most_bytes
    assert large - small < 50e6
