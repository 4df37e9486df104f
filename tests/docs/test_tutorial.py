"""The tutorial, followed as it stands, at its own sizes: every command is typed, every output is compared.

An output may have `...` for what differs from machine to machine: within a line any text, as a line of its
own any lines. Numbers may differ by a hundredth, for other processors round otherwise.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
TOLERANCE = 0.01


def parts() -> list[tuple[str, str]]:
    """Returns kind, or name of the file, and text of each block."""
    found = re.findall(
        r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', PAGE.read_text("utf-8"), re.DOTALL | re.M
    )
    return [(title or kind, text) for kind, title, text in found]


def same_line(expected: str, got: str) -> bool:
    """Tells whether a line is as the page has it."""
    expected, got = " ".join(expected.split()), " ".join(got.split())
    pattern = ".*?".join(
        "(.*?)".join(re.escape(between) for between in NUMBER.split(part)) for part in expected.split("...")
    )
    match = re.fullmatch(pattern, got)
    if match is None:
        return False
    numbers = NUMBER.findall(expected.replace("...", " "))
    try:
        return all(
            math.isclose(float(one), float(other), rel_tol=TOLERANCE, abs_tol=1e-4)
            for one, other in zip(numbers, match.groups(), strict=True)
        )
    except ValueError:  # a text stands where a number is expected
        return False


def missing(expected: str, got: str) -> str:
    """Returns the first line of an output that is not there; empty if all is as the page has it."""
    lines, may_skip = iter(got.splitlines()), False
    for line in expected.splitlines():
        if line == "...":
            may_skip = True
            continue
        for found in lines:
            if same_line(line, found):
                break
            if not may_skip:
                return f"{line!r}, not {found!r}"
        else:
            return repr(line)
        may_skip = False
    rest = list(lines)
    return "" if may_skip or not rest else f"nothing more, not {rest[0]!r}"


@pytest.mark.parametrize(
    ("expected", "got", "is_same"),
    [
        ("a 1.00 b", "a 1.001 b", True),
        ("a 1.00 b", "a 1.1 b", False),
        ("a 1.00 b", "a c b", False),
        ("a ... b", "a 7 x b", True),
        ("...\nend", "x\ny\nend", True),
        ("...\nend", "x\ny", False),
        ("a\n...", "a\nb", True),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
    ],
)
def test_outputs_are_compared(expected: str, got: str, is_same: bool) -> None:
    assert (missing(expected, got) == "") == is_same


@pytest.mark.slow
def test_every_command_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    output, num_compared = None, 0
    for kind, text in parts():
        if kind == "text":
            assert output is not None
            assert missing(text.rstrip(), output.rstrip()) == "", f"{text}\n--- but it was\n{output}"
            output, num_compared = None, num_compared + 1
        elif kind != "sh":
            (tmp_path / kind).write_text(text, encoding="utf-8")
        elif "venv" not in text:  # it is followed in the environment of the tests
            done = subprocess.run(
                ["bash", "-e", "-c", text], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
            )
            output = done.stdout
    assert num_compared >= 13
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("who_moves", "rates"))
    page = tmp_path / "runs" / "quickstart" / "report" / "index.html"
    assert page.is_file()
