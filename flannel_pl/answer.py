"""What a command tells the program that started it, besides what it prints: facts in a file, a line each."""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

VARIABLE = "FLANNEL_PL_ANSWER"
"""Environment variable with the file's name."""

_file: Path | None = None


def listen() -> None:
    """Finds out whether a program has started this command; then it ends in order when that program is gone.

    The program holds the other end of this process's input, which therefore ends with it.
    """
    global _file
    name = os.environ.pop(VARIABLE, None)  # not for the processes that are started from here
    if name is None:
        return
    _file = Path(name)
    threading.Thread(target=_wait_for_the_end_of_input, name="program", daemon=True).start()


def is_asked() -> bool:
    """Tells whether a program listens, so that what goes wrong is its to tell."""
    return _file is not None


def answer(**facts: Any) -> None:
    """Tells facts, if a program listens; later ones replace earlier ones of the same name."""
    if _file is not None:
        with contextlib.suppress(OSError), _file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(facts)}\n")


def read_answers(file: TextIO) -> dict[str, Any]:
    """Returns all that was told so far; the file is one that stays open, since its name may be removed."""
    facts: dict[str, Any] = {}
    file.seek(0)
    for line in file:
        if line.endswith("\n"):  # the last one may be on its way
            facts |= json.loads(line)
    return facts


def _wait_for_the_end_of_input() -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
