"""The fork server's beginning and end; what it is for is tested by every launch."""

import contextlib
import multiprocessing.forkserver as forkserver
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import _is_begun
from flannel_pl.launch.devices import num_cores
from flannel_pl.launch.fork_server import start_fork_server, stop_fork_server
from tests.processes import alive


def server_pid() -> int | None:
    server: Any = forkserver._forkserver
    pid: int | None = server._forkserver_pid
    return pid


def test_it_ends_in_the_middle_of_its_imports_and_can_be_started_again() -> None:
    stop_fork_server()
    start_fork_server("flannel_pl.training.worker")
    first = server_pid()
    assert first is not None
    stop_fork_server()
    assert not alive(first)
    stop_fork_server()  # nothing is left to stop
    start_fork_server("flannel_pl.training.worker")
    assert server_pid() not in (None, first)


@pytest.mark.skipif(sys.platform != "linux" or num_cores() < 2, reason="needs /proc and a second core")
def test_a_command_that_is_refused_leaves_none_behind(tmp_path: Path) -> None:
    words = ["fit", "--experiment.seeds", "nonsense", "--experiment.output_dir", str(tmp_path)]
    command = [sys.executable, "-m", "flannel_pl", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        seen = set[int]()
        while process.poll() is None:
            with contextlib.suppress(OSError):
                seen |= {int(pid) for pid in children.read_text().split()}
            time.sleep(0.05)
        assert process.returncode == 2
    assert seen, "the fork server was started beside the launcher's imports"
    deadline_s = time.monotonic() + 5
    while any(alive(pid) for pid in seen):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_it_is_not_started_for_an_experiment_that_is_begun(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"experiment: {{output_dir: {tmp_path}, name: mine, seeds: 1..2}}")
    assert not _is_begun(["--config", str(config)])
    (tmp_path / "mine").mkdir()
    assert _is_begun(["--config", str(config)])
    assert _is_begun([f"--config={config}", "--trainer.max_steps", "5"])
    assert not _is_begun(["--config", str(config), "--experiment.name", "other"])
    assert _is_begun(["--experiment.name=mine", "--experiment.output_dir", str(tmp_path)])
    config.write_text("experiment: [what\n")
    assert not _is_begun(["--config", str(config)])
    assert not _is_begun(["--config"])
