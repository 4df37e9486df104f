"""Where a recording comes from: versions, git state, command, host. Everything here is plain JSON data."""

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


def collect() -> dict[str, Any]:
    """Returns what a reader needs to repeat or to doubt a recording.

    Returns:
        `versions` (package -> version), `python`, `platform`, `host`, `command` (the argument vector), `git`
        (see `git_state`) and `created` (UTC, ISO 8601).
    """
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "command": sys.argv,
        "git": git_state(Path(__file__).parent),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


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
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
