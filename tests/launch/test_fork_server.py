"""The fork server's beginning and end; what it is for is tested by every launch."""

import contextlib
import multiprocessing.forkserver as forkserver
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.cli.ahead import is_begun
from flannel_pl.launch.devices import num_cores
from flannel_pl.launch.fork_server import start_fork_server, stop_fork_server
from tests.conftest import SmallData
from tests.mounting import read_only
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


@pytest.mark.slow
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


POOLS = """
import multiprocessing, sys
import multiprocessing.forkserver as forkserver
from flannel_pl.__main__ import main

def use_pools():
    for _ in range(30):
        with multiprocessing.get_context("forkserver").Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]

if __name__ == "__main__":
    has_own = sys.argv.pop(1) == "own"
    if has_own:
        use_pools()
    before = forkserver._forkserver._forkserver_pid
    assert main(sys.argv[1:]) == 0
    assert forkserver._forkserver._forkserver_pid == before
    use_pools()
"""


@pytest.mark.parametrize("whose", ["ours", "own"])
def test_pools_of_the_same_program_end(small_data: SmallData, tmp_path: Path, whose: str) -> None:
    """What our server forks does not hear that it is to end; a pool of somebody else's waited for good."""
    (tmp_path / "pools.py").write_text(POOLS)
    command = [sys.executable, str(tmp_path / "pools.py"), whose, "fit", *small_data.arguments]
    command += ["--experiment.seeds", "1..2", "--trainer.max_steps", "2", "--experiment.output_dir"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def start_with(temporary: Path, *, code: str = "") -> "subprocess.CompletedProcess[str]":
    """Starts a fork server in a process of its own that has another TMPDIR, and has it fork."""
    script = f"""
import multiprocessing, time
from flannel_pl.launch import fork_server
{code}
if __name__ == "__main__":
    fork_server.start_fork_server("json")
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("num_bytes", [60, 77, 90, 131, 240])
def test_a_long_tmpdir_is_no_obstacle(num_bytes: int) -> None:
    folder = Path("/tmp", f"flannel-{os.getpid()}-".ljust(num_bytes - 5, "x"))
    folder.mkdir()
    try:
        answer = start_with(folder)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert not list(folder.iterdir()), "nothing is left behind"
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["missing", "a file", "read-only"])
def test_a_tmpdir_that_cannot_be_used_is_no_obstacle(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "a file":
        folder.write_text("")
    if kind == "read-only":
        folder.mkdir()
    with read_only(folder) if kind == "read-only" else contextlib.nullcontext():
        answer = start_with(folder)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_tmpdir_whose_file_system_keeps_no_permissions_is_no_obstacle(tmp_path: Path) -> None:
    code = f"""
import os
def refuse(path, mode, *, there=os.chmod):
    if str(path).startswith({str(tmp_path)!r}):
        raise PermissionError(1, "Operation not permitted", path)
    there(path, mode)
os.chmod = refuse
"""
    answer = start_with(tmp_path, code=code)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_where_no_folder_takes_a_socket_it_says_what_to_set(tmp_path: Path) -> None:
    folder = tmp_path / (131 * "x")
    folder.mkdir()
    answer = start_with(folder, code="fork_server.SHORT_FOLDERS = ()")
    assert answer.returncode == 1
    complaint = answer.stderr.splitlines()[-1]
    assert f"TMPDIR is {folder}; set it to a folder that can be written" in complaint
    assert "with a path of at most 70 bytes" in complaint


def test_it_is_not_started_for_an_experiment_thatis_begun(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"experiment: {{output_dir: {tmp_path}, name: mine, seeds: 1..2}}")
    assert not is_begun(["--config", str(config)])
    (tmp_path / "mine").mkdir()
    assert is_begun(["--config", str(config)])
    assert is_begun([f"--config={config}", "--trainer.max_steps", "5"])
    assert not is_begun(["--config", str(config), "--experiment.name", "other"])
    assert is_begun(["--experiment.name=mine", "--experiment.output_dir", str(tmp_path)])
    config.write_text("experiment: [what\n")
    assert not is_begun(["--config", str(config)])
    assert not is_begun(["--config"])
