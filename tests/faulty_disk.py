"""Whole `flannel-pl` commands on a disk that fails on request, for the tests.

As a program this is a host: it imports everything once, and then runs each command it is sent in a forked
process of its own, whose `os` functions fail where they are told to. Nothing may have been trained before a
fork, so the host itself trains nothing.
"""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # noqa: F401 - tells numpy what bfloat16 is
from safetensors.numpy import load_file

CALLS = {
    "pwrite": ("pwrite",),
    "fsync": ("fsync",),
    "rename": ("replace", "rename"),
    "size": ("ftruncate",),
    "reserve": ("posix_fallocate",),
    "copy": ("copy_file_range",),
    "create": ("open",),
    "mkdir": ("mkdir",),
}
"""What can fail -> the functions of `os` that it is made of; their calls are counted together."""

SHORT = -1
"""In place of an error number: the call writes half of what it is given, and says so."""


@dataclass(frozen=True)
class Fault:
    """The k-th call of a kind fails, and no other."""

    call: str
    k: int
    """Counted from 1."""

    error: int
    """An error number, or SHORT."""

    def __str__(self) -> str:
        error = "short" if self.error == SHORT else errno.errorcode[self.error]
        return f"{self.call}-{self.k}-{error}"


@dataclass(frozen=True)
class Attempt:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    num_calls: dict[str, int]
    """Kind of call -> how many there were."""

    struck: str | None
    """The file whose call failed; None if there were fewer calls than that."""

    threads: list[str]
    """Threads of ours that were left at the end."""


def tensors_of(folder: Path) -> dict[str, bytes]:
    """The bits of everything recorded in an experiment's folder, in its shards and in the gathered file."""
    return {
        f"{key} of {file.relative_to(folder)}": array.tobytes()
        for file in (*folder.glob("run_*/recording.safetensors"), folder / f"{folder.name}.safetensors")
        for key, array in load_file(file).items()
    }


def names_in(folder: Path) -> list[str]:
    """Every file and folder of an experiment, without the hash in a checkpoint's name."""
    return sorted(re.sub("-[0-9a-f]{16}", "", str(path.relative_to(folder))) for path in folder.rglob("*"))


class Host:
    """A process that runs commands; a context manager. Runs one at a time.

    Args:
        folder: A new folder for what it needs.
        words: A command to prepare for: what it would do is planned, so that later ones start at once.
        one_by_one: Several runs are trained one after the other in forks, which import nothing, not by the
            launcher.
    """

    def __init__(self, folder: Path, words: Sequence[str], *, one_by_one: bool = False) -> None:
        folder.mkdir()
        self._folder, self._one_by_one = folder, one_by_one
        command = [sys.executable, __file__, json.dumps(["plan", *words[1:]])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def __enter__(self) -> "Host":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, words: Sequence[str], *, below: Path, fault: Fault | None = None) -> Attempt:
        """Runs a command.

        Args:
            words: The command line without the program's name.
            below: Calls count if they are about a file below this folder.
            fault: What fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "words": list(words),
            "below": str(below),
            "fault": None if fault is None else asdict(fault),
            "one_by_one": self._one_by_one,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the host has ended; it says why on stderr"
        code = int(line)
        stdout, stderr = ((self._folder / name).read_text() for name in ("stdout", "stderr"))
        report = self._folder / "report.json"
        assert report.exists(), f"ended with {code} and no report:\n{stderr}"
        attempt = Attempt(code, stdout, stderr, **json.loads(report.read_text()))
        report.unlink()
        return attempt


class _Disk:
    """Counts the calls of a process, and lets one fail."""

    def __init__(self, below: str, fault: Fault | None) -> None:
        self.below, self.fault = below, fault
        self.num_calls: Counter[str] = Counter()
        self.struck: str | None = None
        self._lock = threading.Lock()
        for kind, names in CALLS.items():
            for name in names:
                setattr(os, name, self._watched(kind, name))

    def _watched(self, kind: str, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            file = _file_of(name, arguments)
            if not file.startswith(self.below) or not _needs_disk(name, file, arguments):
                return real(*arguments, **options)
            with self._lock:
                self.num_calls[kind] += 1
                strikes = self.fault is not None and (kind, self.num_calls[kind]) == (
                    self.fault.call,
                    self.fault.k,
                )
            if not strikes:
                return real(*arguments, **options)
            self.struck = file
            assert self.fault is not None
            if self.fault.error == SHORT:
                fd, data, offset = arguments
                return real(fd, data[: (len(data) + 1) // 2], offset)
            about = () if isinstance(arguments[0], int) else (file,)
            raise OSError(self.fault.error, os.strerror(self.fault.error), *about)

        return call


def _file_of(name: str, arguments: tuple[Any, ...]) -> str:
    """Returns the file that a call is about: the one that is written."""
    target = arguments[1] if name == "copy_file_range" else arguments[0]
    if isinstance(target, int):
        # What was unlinked while open has " (deleted)" behind its name; the folder is what matters.
        return str(Path(f"/proc/self/fd/{target}").readlink())
    return str(Path(target).absolute())


def _needs_disk(name: str, file: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call puts something on the disk that was not there."""
    if name == "open":
        return bool(arguments[1] & os.O_CREAT)
    return name != "mkdir" or (Path(file).parent.exists() and not Path(file).exists())


def _serve(plan_words: list[str]) -> None:
    import torch

    import flannel_pl.launch.summary
    import flannel_pl.recording.checking.verify
    import flannel_pl.training.fit
    import flannel_pl.training.worker  # noqa: F401 - all of these so that no fork has to import them
    from flannel_pl.__main__ import main

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        assert main(plan_words) == 0
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(main, request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # taking all the imports down in order would take seconds


def _run(main: Callable[[Sequence[str]], int], request: dict[str, Any]) -> None:
    """Runs one command in the forked process, and ends that."""
    import flannel_pl.cli.fit
    from flannel_pl.recording.writing import writer

    # How often the journal is written and rows are synced, so which call is the k-th, depends on the clock.
    writer.JOURNAL_EVERY_S = 600.0
    defaults: dict[str, Any] = writer.RecordingWriter.__init__.__kwdefaults__ or {}
    assert "commit_every_s" in defaults
    defaults["commit_every_s"] = 600.0
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    sys.argv = ["flannel-pl", *request["words"]]
    if request["one_by_one"]:
        setattr(flannel_pl.cli.fit, "train_all", _train_in_forks)  # noqa: B010 - it is no name that fit exports
    disk = _Disk(request["below"], None if request["fault"] is None else Fault(**request["fault"]))
    try:
        code = main(request["words"])
    except BaseException:
        traceback.print_exc()
        code = 70
    report = {
        "num_calls": disk.num_calls,
        "struck": disk.struck,
        "threads": [thread.name for thread in threading.enumerate() if thread.name.startswith("flannel-")],
    }
    Path("report.json").write_text(json.dumps(report))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train_in_forks(
    experiment: Any, runs: Sequence[Any], slots: Sequence[Any], *, finished: Any, **_: Any
) -> list[Any]:
    """Trains runs one after the other in forks of this process, which has imported everything."""
    from flannel_pl.launch.standing import Outcome
    from flannel_pl.training import worker

    outcomes = []
    for run in runs:
        child = os.fork()
        if child == 0:
            worker._log_to(experiment.paths.run(run.index))
            code = worker._train(experiment, run, slots[0], 1)
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            finished(run.index)
        log = experiment.paths.run(run.index).log
        failure = None if code == 0 else f"exit code {code}: {log.read_text(errors='replace')[-300:]}"
        outcomes.append(Outcome(run, slots[0].name, 1, None, failure))
    return outcomes


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
