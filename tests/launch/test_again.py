"""The same command on a finished experiment: done within seconds, and nothing is touched."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from tests.conftest import SmallData
from tests.traces import traces

LIMIT_S = 5.0
"""For the whole process, imports included."""

NUM_TRIES = 3
"""The fastest counts: the others had to share the machine."""

GATHERS = {
    "single": ["--experiment.gather", "single"],
    "single, shards dropped": ["--experiment.gather", "single", "--experiment.keep_shards", "false"],
    "index": ["--experiment.gather", "index"],
    "none": ["--experiment.gather", "none"],
}


def words(data: SmallData, folder: Path, *arguments: str) -> list[str]:
    steps = ["--trainer.max_steps", "3", "--experiment.output_dir", str(folder)]
    return ["fit", *data.arguments, *steps, *arguments]


@pytest.mark.parametrize("seeds", ["7", "7..9"])
@pytest.mark.parametrize(
    "gather",
    [pytest.param(name, marks=pytest.mark.slow if name in ("none", "index") else ()) for name in GATHERS],
)
def test_the_same_command_again_changes_nothing(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], gather: str, seeds: str
) -> None:
    command = words(small_data, tmp_path, *GATHERS[gather], "--experiment.seeds", seeds)
    assert main(command) == 0
    before = traces(tmp_path)
    assert len(before) > 5
    capsys.readouterr()
    assert main(command) == 0
    assert traces(tmp_path) == before
    output = capsys.readouterr()
    expected = "finished: " if gather == "none" else "finished already: "
    assert all(line.startswith(expected) for line in output.out.splitlines())
    assert str(tmp_path / "flannel") in output.out
    assert output.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["7", "7..16"])
def test_it_takes_a_few_seconds_imports_included(small_data: SmallData, tmp_path: Path, seeds: str) -> None:
    command = [sys.executable, "-m", "flannel_pl"]
    command += words(small_data, tmp_path, "--experiment.seeds", seeds)
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    before = traces(tmp_path)
    seconds = []
    for _ in range(NUM_TRIES):
        began_s = time.monotonic()
        again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        seconds.append(time.monotonic() - began_s)
        assert again.stdout.startswith("finished already: ")
        assert traces(tmp_path) == before
    assert min(seconds) < LIMIT_S, seconds


def test_whatever_is_touched_is_seen(tmp_path: Path) -> None:
    (tmp_path / "run_0").mkdir()
    log = tmp_path / "run_0" / "log.txt"
    log.write_text("done\n")
    for path in (log, tmp_path):  # long ago: some file systems tell only ticks of milliseconds apart
        os.utime(path, ns=(1, 1))
    before = traces(tmp_path)
    assert traces(tmp_path) == before
    log.write_text("done\n")
    assert traces(tmp_path) != before
    before = traces(tmp_path)
    (tmp_path / "lock").touch()
    (tmp_path / "lock").unlink()
    assert {path for path, trace in traces(tmp_path).items() if trace != before[path]} == {tmp_path}
