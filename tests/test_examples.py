"""What examples/ and pages in docs/ show in Python works as printed (format.md has a test of its own)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(code, id=f"{page.name} {number}")
    for page in (ROOT / "docs" / "compare.md", ROOT / "docs" / "report.md")
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    )
]


def run(*words: object, folder: Path) -> str:
    return subprocess.check_output([sys.executable, *map(str, words)], cwd=folder, text=True)


def test_world_lines(example_runs: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "world_lines.py"
    printed = run(example, example_runs / "runs" / "quickstart", tmp_path / "lines.png", folder=tmp_path)
    assert printed.startswith("(21, 10, 16)\nthe plane holds ")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    run(example, folder=example_runs)  # without words, on what `make demo` records
    assert (example_runs / "world_lines.png").exists()


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_of_python(code: str, example_runs: Path) -> None:
    run("-c", code, folder=example_runs)
