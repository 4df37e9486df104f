"""docs/troubleshooting.md quotes what the package says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
QUOTED = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
HOLE = "\0"


@cache
def texts() -> list[str]:
    """Returns every text of the package, with a hole where it has a value."""
    found = []
    for path in (ROOT / "flannel_pl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_there_are_twenty_or_so() -> None:
    assert len(QUOTED) >= 20
    assert len(QUOTED) == PAGE.count("\n### ") == len(set(QUOTED))


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_package_says_so(quoted: str) -> None:
    """In one text, in this order; three dots stand for a value or for what is left out."""
    parts = [part.strip() for part in quoted.split("...")]
    pattern = re.compile(r".*?".join(map(re.escape, parts)), re.DOTALL)
    longest = max(parts, key=len)
    assert any(longest in text and pattern.search(text) for text in texts()), quoted
