"""Runs a verb in a process of its own, and shows how it goes: on the terminal, or in a notebook.

Training sets much of its process: threads, random numbers, torch's kernels. That of a notebook stays as it
was, and a script needs no `if __name__ == "__main__"`.
"""

import importlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flannel_pl.answer import VARIABLE, read_answers
from flannel_pl.errors import RunError, UserError
from flannel_pl.launch.display import status_table
from flannel_pl.launch.status import read_status
from flannel_pl.terminal import NOTEBOOK_WIDTH, as_html

MAX_WORD_CHARS = 100_000
"""Longest word of a command line; Linux takes 128 KiB."""

END_S = 30.0
"""How long a command may take to end in order."""

_START = (
    "import json, os, sys; sys.path[:] = json.loads(os.environ.pop('FLANNEL_PL_PATH')); "
    "sys.argv[0] = 'flannel-pl'; from flannel_pl.__main__ import main; sys.exit(main())"
)
"""What the process does: it finds its modules where this program does, and is the command."""

REFRESH_S = 0.5
"""How often a notebook looks at the journals."""


@dataclass(frozen=True)
class Done:
    """How a command has ended."""

    facts: dict[str, Any]
    """What it has told."""

    output: str
    """What it has printed, if that was not shown."""


def call(verb: str, words: Sequence[str], *, progress: bool, captured: bool = False) -> Done:
    """Runs a verb to its end.

    Args:
        verb: Which.
        words: What stands behind it.
        progress: Whether to show how it goes.
        captured: Whether to return what it prints, instead of showing it.

    Raises:
        UserError: As the verb does.
        RunError: As the verb does; or runs have failed.
        KeyboardInterrupt: On Ctrl-C, or where a kernel was interrupted, once everything is on the disk.
    """
    in_notebook = progress and not captured and _is_notebook()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(_temporary_folder()))
        told = stack.enter_context((folder / "answers").open("w+", encoding="utf-8"))
        # Not a pipe: whoever reads it may be gone, and training ends in order all the same.
        output = stack.enter_context((folder / "output").open("w+", errors="replace"))
        is_shown = progress and not (captured or in_notebook)
        environment = {
            VARIABLE: told.name,
            "FLANNEL_PL_PATH": json.dumps(_path()),
            "PYTHONPATH": _own_folders(),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _START, verb, *_short(words, folder)],
            stdin=subprocess.PIPE,  # whose end tells that we are gone
            stdout=None if is_shown else output,
            stderr=None if is_shown else subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # so that a Ctrl-C reaches it once, from here
        )
        look = _notebook_display(told) if in_notebook else lambda: None
        try:
            interrupted = _wait(process, look)
        finally:
            _end(process)
        look()
        facts = read_answers(told)
        output.seek(0)
        printed = output.read()
    if interrupted:
        raise KeyboardInterrupt(facts.get("stopped", "stopped"))
    try:
        _raise_error(verb, words, process.returncode, facts)
    except (UserError, RunError) as error:
        if printed.strip():
            error.add_note(printed.rstrip("\n"))
        raise
    return Done(facts, printed)


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="flannel-", ignore_cleanup_errors=True)


def _short(words: Sequence[str], folder: Path) -> list[str]:
    """Returns the words with those in files that are longer than a system takes."""
    short = list(words)
    for number, word in enumerate(words):
        if len(word) > MAX_WORD_CHARS:
            file = folder / f"config-{number}.yaml"
            file.write_text(word, encoding="utf-8")
            short[number] = str(file)
    return short


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a command in order, if something unforeseen has happened here while it was at work."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _wait(process: "subprocess.Popen[bytes]", look: Callable[[], object]) -> bool:
    """Waits for the end; hands every interrupt on, and returns whether there was one."""
    interrupted = False
    while True:
        try:
            try:
                process.wait(timeout=REFRESH_S)
            except subprocess.TimeoutExpired:
                look()
                continue
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)


def _raise_error(verb: str, words: Sequence[str], code: int, facts: dict[str, Any]) -> None:
    if code == 0:
        return
    if "error" in facts:
        kind = UserError if facts["kind"] == "UserError" else RunError
        raise kind(facts["error"])
    if "stopped" in facts:
        raise RunError(facts["stopped"])
    failed = _failures(facts["folder"]) if "folder" in facts else []
    if failed:
        raise RunError("\n".join(failed))
    if code == -signal.SIGKILL:
        raise RunError("the launcher was killed (by hand, or because memory ran out); the same call goes on")
    raise RunError(
        f"`flannel-pl {shlex.join([verb, *words])}` ended with exit code {code} and without a word; run it "
        "in a terminal to see more"
    )


def _failures(folder: str) -> list[str]:
    status = read_status(Path(folder))
    failed = [run for run in status.runs if run.state == "failed"]
    if not failed:
        return []
    lines = [f"{len(failed)} of {len(status.runs)} runs failed; what is finished is kept"]
    lines += [f"run {run.run} (seed {run.seed}): {run.message}" for run in failed[:5]]
    return [*lines, f"the logs are in {status.folder}/run_*/log.txt; the same call goes on"]


def _path() -> list[str]:
    """Returns where this program finds its modules, in its order."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def _own_folders() -> str:
    """Returns what comes before Python's own modules, for processes that start with nothing else."""
    standard = Path(sysconfig.get_paths()["stdlib"]).resolve()
    own = list(itertools.takewhile(lambda entry: Path(entry).resolve() != standard, _path()))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [
        entry for entry in (*own, *inherited) if Path(entry).is_dir() and os.pathsep not in entry and entry
    ]
    return os.pathsep.join(dict.fromkeys(folders))


def _is_notebook() -> bool:
    """Tells whether what is shown goes to a notebook, which has no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _notebook_display(told: TextIO) -> Callable[[], None]:
    """Returns what shows in one place of a notebook how far the experiment is, again and again."""
    display_room: Any = importlib.import_module("IPython.display")  # there, since we are in a notebook
    HTML, display = display_room.HTML, display_room.display

    handle: Any = display(HTML("<pre>flannel-pl: starting ...</pre>"), display_id=True)

    def look() -> None:
        # Whatever goes wrong with what is shown, training goes on.
        with suppress(Exception):
            folder = read_answers(told)["folder"]
            status = read_status(Path(folder))
            handle.update(HTML(as_html(status_table(status, width=NOTEBOOK_WIDTH))))

    return look
