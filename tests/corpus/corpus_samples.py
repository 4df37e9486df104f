"""Small texts and processes that the corpus tests share."""

import os
import subprocess
import sys
from pathlib import Path

PANGRAMS = (
    "The quick brown fox jumps over the lazy dog. "
    "Pack my box with five dozen liquor jugs, said the fox to the dog; the dog said no.\n"
) * 40


def run_python(code: str, **env: str) -> str:
    """Runs code in a Python process of its own and returns what it printed."""
    found = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **found, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
