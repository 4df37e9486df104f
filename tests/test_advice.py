"""No message tells to throw away, or to record again, what may still be there.

Every text of the package that gives such advice is listed here with the reason why nothing else can help.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "flannel_pl"

ADVICE = re.compile(
    r"\b(delete|remove|throw|unlink|erase|discard)\b|\brm -|\b(move|put)s?\b[^.;]*\b(away|another folder)\b"
    r"|\brecord(s|ed)?\b[^.;]*\b(again|anew|alone)\b|\bstarts? over\b|\bfrom (its|the) beginning\b",
    re.IGNORECASE,
)

ALLOWED = {
    "bring it back, or flannel-pl fit records it again": "the file is gone; bringing it back comes first",
    "copies that run again, or records it again": "what `fit` does by itself with a copy that is damaged",
    "delete it and run flannel-pl fit again: it records this run again, unless that is gathered": (
        "checksums in a run's own file are wrong; there is no other copy unless it is gathered"
    ),
    "if there is none, record that run alone in another folder": (
        "checksums in the only copy are wrong; that file stays, with all its other runs"
    ),
    "it has to be recorded again": "the file is cut short or no recording, and there is no copy of it",
    "or delete {} to record them anew": "notes that alone tell what a growing file holds fail their checksum",
    "it records run {} again": "checksums of the only copy are wrong",
    "delete that and run flannel-pl fit again": "checksums of the run's own file are wrong, as verify says",
    "gets that name if you move the other file to another folder": "two complete files; neither is lost",
    "no checkpoint in {} can be used, so the run starts from its beginning": (
        "every checkpoint or every row is damaged; one that only cannot be read ends the run before this"
    ),
    "it back to go on, or start again from the beginning": "somebody removed the folder, with all in it",
    "the folder back to go on, or start again from the beginning": "the same, as the lock's holder sees it",
    "or, if those jobs have ended, move {} away first": (
        "the list of jobs at a Slurm that cannot be asked from here; no recording is in it"
    ),
    "{}, move it away, say overwrite=True, or record into another folder": (
        "a script's own unfinished recording, perhaps without a checkpoint; going on with it comes first"
    ),
}
"""Part of a text, {} where something is filled in -> why there is no other way."""


def texts(tree: ast.Module) -> Iterator[str]:
    """Yields every text of a module but docstrings, with {} where something is filled in."""
    documents = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    documents |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= set(ast.walk(node)) - {node}
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and node not in documents | inner and isinstance(node.value, str):
            yield node.value


@functools.cache
def advice() -> dict[str, str]:
    """Returns every text that gives such advice -> the file that it is in."""
    return {
        text: str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if ADVICE.search(text)
    }


def test_it_is_given_only_where_nothing_else_can_help() -> None:
    unknown = {text: file for text, file in advice().items() if not any(part in text for part in ALLOWED)}
    assert unknown == {}


def test_every_reason_is_of_a_text_that_is_there() -> None:
    found = advice()
    assert [part for part in ALLOWED if not any(part in text for text in found)] == []


def test_such_advice_is_seen() -> None:
    for text in (
        *(
            "Delete it to start this run.",
            "Copy or record it again.",
            "Record that run again.",
            "Move one away.",
        ),
        *("move runs/x away", "Record or copy that file again.", "rm -r runs/x", "put that file away"),
    ):
        assert ADVICE.search(text), text
    for text in ("Run it again.", "a recording that went away", "gather again", "remote"):
        assert not ADVICE.search(text), text
