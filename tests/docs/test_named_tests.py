"""Tests that pages name are there, and are of the slow suite where a page says so and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`( \(s\))?")


def slow_tests(path: Path) -> dict[str, bool]:
    """Returns the tests of a file, and whether each is of the slow suite."""
    tree = ast.parse(path.read_text("utf-8"))
    every = any(
        isinstance(one, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in one.targets)
        and "pytest.mark.slow" in ast.unparse(one.value)
        for one in tree.body
    )
    return {
        one.name: every or any("pytest.mark.slow" in ast.unparse(mark) for mark in one.decorator_list)
        for one in tree.body
        if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    file = ""
    for found in NAMED.finditer(page.read_text("utf-8")):
        named, name, slow = found.groups()
        file = named or file
        if named is None and name is None:
            continue
        assert (ROOT / file).is_file(), file
        if name is not None:
            tests = slow_tests(ROOT / file)
            assert name in tests, f"{file} has no {name}"
            if page.name == "crashes.md":
                assert tests[name] == bool(slow), f"{name}: is it slow?"


def test_the_page_of_crashes_names_many() -> None:
    text = (ROOT / "docs" / "crashes.md").read_text("utf-8")
    assert sum(name is not None for _, name, _ in (one.groups() for one in NAMED.finditer(text))) > 20
