"""Where a recording comes from: versions, git state, command, host. Everything here is plain JSON data."""

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "flannel-pl",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "jsonargparse",
)

CPU_FACTS = Path("/proc/cpuinfo")
"""Where Linux says what its processors are."""

SOURCE_ROOMS = ("adapters", "corpus", "models", "quantities", "training")
"""Folders of this package whose code decides the bits of a row; the others only start it, store and read."""


def collect() -> dict[str, Any]:
    """Returns what a reader needs to repeat or to doubt a recording.

    Returns:
        `versions` (package -> version), `python`, `libc`, `platform`, `host`, `command` (the argument
        vector), `git` (see `git_state`), `source` (see `source_digest`), `created` (UTC, ISO 8601), and, if
        classes of others are trained, `own_source` (module -> hash of its file).
    """
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "platform": platform.platform(),
        "host": platform.node(),
        "command": sys.argv,
        **_code(),
        **({"own_source": dict(sorted(_own_sources.items()))} if _own_sources else {}),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


_own_sources: dict[str, str] = {}


def note_source(module: str, file: Path) -> None:
    """Has `collect` say what is in the file of a module that decides bits, as it is when first noted.

    Args:
        module: Its name.
        file: Where its code is.
    """
    if module not in _own_sources:
        _own_sources[module] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def forget_sources() -> None:
    """Begins anew with what `note_source` is told: another experiment has other modules."""
    _own_sources.clear()


@functools.cache
def _code() -> dict[str, Any]:
    """Looks once: what runs in this process was read at its beginning."""
    package = Path(__file__).parent
    return {"git": git_state(package), "source": source_digest(package)}


def source_digest(package: Path) -> str:
    """Returns a hash of the code that decides bits, 16 hexadecimal digits.

    It tells two states of a changed checkout apart, which a commit does not, and stays the same when only
    something else was changed.

    Args:
        package: Folder of the package.
    """
    digest = hashlib.sha256()
    for file in sorted(file for room in SOURCE_ROOMS for file in (package / room).rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def cpu_model() -> dict[str, str]:
    """Returns what the system calls this host's processor: `name`, and where it says so `family`, `model`.

    A hypervisor may hide the name but not the numbers, which stand for the microarchitecture.
    """
    ours = {"model name": "name", "cpu family": "family", "model": "model", "CPU part": "model"}
    found = {}
    with contextlib.suppress(OSError):
        first = CPU_FACTS.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        facts = [line.partition(":") for line in first.splitlines()]
        found = {ours[key.strip()]: value.strip() for key, _, value in facts if key.strip() in ours}
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["name"] = _output("sysctl", "-n", "machdep.cpu.brand_string")
    return {"name": platform.processor() or platform.machine()} | found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns the commit that `folder` is checked out at, and whether it has been changed since.

    Returns:
        `commit` (40 hexadecimal digits) and `dirty` (bool); None if git does not know the folder's files, as
        in an installed package, or is not there.
    """
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return (
            {
                "commit": _git(folder, "rev-parse", "HEAD"),
                "dirty": bool(_git(folder, "status", "--porcelain", "--", ".")),
            }
            if tracked
            else None
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return _output("git", "-C", str(folder), *arguments)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
