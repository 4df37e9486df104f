"""Real disks to fail on: what tests mount, and unmount again."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mounts on a folder for the length of a block; skips the test where that is not possible.

    Args:
        folder: Where; it exists.
        options: The rest of mount's arguments, what is mounted last.
    """
    if shutil.which("mount") is None:
        pytest.skip("cannot mount a disk: there is no mount command")
    mounting = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if mounting.returncode != 0:
        pytest.skip(f"cannot mount a disk, which takes root's rights: {mounting.stderr.strip()}")
    try:
        yield
    finally:
        if subprocess.run(["umount", str(folder)], check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder read-only for the length of a block, for root as well."""
    with mounted(folder, "--bind", "-o", "ro", str(folder)):
        yield
