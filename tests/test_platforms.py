"""What works where: on Windows, whose Python lacks much, recordings can be read; the rest says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.__main__ import NEED_POSIX, VERBS, main

# Windows as far as its Python goes: without these modules, functions and signals, unable to open a folder or
# to rename a file that is open. Libraries are imported before, since those for Windows are other builds.
WINDOWS = """
import importlib, os, signal, sys
for name in (
    "jsonargparse", "docstring_parser", "matplotlib.figure", "matplotlib.backends.backend_agg", "ml_dtypes",
    "matplotlib.backends.backend_svg", "multiprocessing", "numpy", "rich.console", "rich.live",
    "rich.progress", "safetensors.numpy", "subprocess", "shutil", "tempfile", "xxhash", "yaml",
):
    importlib.import_module(name)

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in MODULES:
    sys.modules.pop(name, None)
for name in (
    "copy_file_range", "fchmod", "fork", "fstatvfs", "getpgid", "getsid", "getuid", "killpg", "mkfifo",
    "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "sched_getaffinity",
    "sendfile", "setsid", "statvfs", "uname", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "pthread_sigmask"):
    delattr(signal, name)

open_file, rename = os.open, os.replace

def open_on_windows(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_file(path, *arguments, **options)

def rename_on_windows(source, target):
    links = [f"/proc/self/fd/{fd}" for fd in range(3, 256) if os.path.exists(f"/proc/self/fd/{fd}")]
    if os.fspath(source) in {os.readlink(link) for link in links}:
        raise PermissionError(13, "The process cannot access the file", str(source))
    return rename(source, target)

os.open, os.replace = open_on_windows, rename_on_windows
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_recordings_can_be_read_on_windows(example_runs: Path, tmp_path: Path) -> None:
    folder = example_runs / "runs" / "quickstart"
    code = f"""{WINDOWS}
import flannel_pl
from flannel_pl.__main__ import main
import flannel_pl.recording.gathering.gather, flannel_pl.recording.writing.lock, flannel_pl.signals

for words, expected in (
    (["info", {str(folder / "quickstart.safetensors")!r}], 0),
    (["verify", {str(folder)!r}], 0),
    (["status", {str(folder)!r}], 0),
    (["compare", {str(folder / "run_0")!r}, {str(folder / "run_1")!r}], 1),
    (["report", {str(folder)!r}, "--out", {str(tmp_path / "report")!r}], 0),
):
    code = main([*words, "--debug"])
    assert code == expected, (words, code)
with flannel_pl.open_recording({str(folder)!r}) as recording:
    assert recording.run(1).embeddings[20].shape == (100, 16)
assert [number.name for number in flannel_pl.signals.STOP_SIGNALS] == ["SIGTERM", "SIGINT"]
sys.platform = "win32"
assert main(["fit"]) == 2
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (tmp_path / "report" / "index.html").exists()
    assert not list((tmp_path / "report").rglob("*.partial"))


@pytest.mark.parametrize("verb", NEED_POSIX)
def test_on_windows_the_rest_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main([verb, "--config", "nowhere.yaml"]) == 2
    complaint = capsys.readouterr().err
    assert f"`flannel-pl {verb}` runs on Linux and macOS; on Windows use WSL2." in complaint
    assert complaint.endswith("Recordings can be read here: status, info, verify, report, compare\n")


def test_the_help_says_where_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert f"{', '.join(NEED_POSIX)} run on Linux and macOS; the others on Windows as well" in text
    assert set(NEED_POSIX) < set(VERBS)
