"""What steers a terminal never reaches it from a file, a name or an error; honest text always does."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest
from rich.live import Live
from rich.progress import Progress, TextColumn
from rich.text import Text

from flannel_pl import __main__ as verbs
from flannel_pl.__main__ import main
from flannel_pl.errors import RunError
from flannel_pl.terminal import drawn_upon, is_terminal, make_console, plain_text
from tests.launch.terminal import Terminal
from tests.recording.recording_samples import make_writer, write_rows

EVIL = "a\x1b[2J\x1b]0;title\x07b\x9b5mc\rd\x08e\u202ef\x7f"
ESCAPED = r"a\x1b[2J\x1b]0;title\x07b\x9b5mc\rd\x08e\u202ef\x7f"


class TerminalStream(io.StringIO):
    """What looks like a terminal to whoever draws."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> TerminalStream:
    monkeypatch.setenv("TERM", "xterm-256color")
    return TerminalStream()


@contextmanager
def text_to(stream: TextIO) -> Iterator[None]:
    with redirect_stdout(stream), redirect_stderr(stream), plain_text():
        yield


def test_what_is_printed_is_text(screen: TerminalStream) -> None:
    with text_to(screen):
        print(f"caf\u00e9 \u0e20\t{EVIL}\nnext", file=sys.stderr)
        print(EVIL, flush=True)
        assert is_terminal()
        assert not sys.stdout.isatty()
    assert screen.getvalue() == f"caf\u00e9 \u0e20\t{ESCAPED}\nnext\n{ESCAPED}\n"


def test_what_is_drawn_steers_the_terminal_but_its_text_does_not(screen: TerminalStream) -> None:
    with text_to(screen):
        console = make_console()
        assert console.is_terminal
        console.print(Text(EVIL, style="bold red"), soft_wrap=True)
    kept = ESCAPED.replace(r"\x07", "").replace(r"\r", "").replace(r"\x08", "")  # rich drops these itself
    assert screen.getvalue() == f"\x1b[1;31m{kept}\x1b[0m\n"


@pytest.mark.parametrize("draw", [Live, Progress])
def test_what_is_printed_while_something_is_drawn(
    screen: TerminalStream, draw: Callable[..., Live | Progress]
) -> None:
    with text_to(screen):
        before = sys.stdout, sys.stderr
        columns = [TextColumn("here")] if draw is Progress else []
        with draw(*columns, console=make_console(stderr=True), auto_refresh=False):
            print(f"\x1b[31m{EVIL}\x1b]8;;http://x\x1b\\link")
        assert (sys.stdout, sys.stderr) == before
    assert rf"\x1b[31m{ESCAPED}\x1b]8;;http://x\x1b\link" in screen.getvalue().replace("\n", "")
    assert "\x1b[31m" not in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back, so what steers still does


def test_others_draw_where_they_are_let(screen: TerminalStream) -> None:
    with text_to(screen), drawn_upon():
        assert sys.stdout.isatty()
        print("\r\x1b[32mdone", end="")
    assert screen.getvalue() == "\r\x1b[32mdone"


def test_what_the_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with text_to(stream):
        print("caf\u00e9 \udcff")
        make_console().print("\u0e20 \u2501")
        with drawn_upon():
            print("\u00b5")
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udcff\n\\u0e20 \\u2501\n\\xb5\n"


def test_without_anywhere_to_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert main(["xyzzy"]) == 2


@pytest.fixture
def evil_folder(tmp_path: Path) -> Path:
    """A folder of a run with escape sequences in its name and in all that the file says of itself."""
    folder = tmp_path / "run\x1b]0;title\x07\x1b[31m"
    said = {"command": EVIL, f"key{EVIL}": "x", "data": {}}
    metadata = {"run": 0, "seed": 42, "swept": {f"k{EVIL}": EVIL}, "provenance": said}
    writer = make_writer(folder, metadata={**metadata, "config": {"model": {"param_dtype": EVIL}}})
    write_rows(writer, range(7))
    writer.finish()
    return folder


@pytest.mark.parametrize("verb", ["info", "verify", "status", "gather"])
def test_no_verb_lets_it_through_on_a_terminal(evil_folder: Path, verb: str) -> None:
    command = [sys.executable, "-m", "flannel_pl", verb, str(evil_folder)]
    with Terminal(command, columns=80, lines=24) as terminal:
        terminal.end()
    assert r"run\x1b]0;title\x07\x1b[31m" in terminal.output
    for what in ("\x1b]", "\x1b[31m", "\x1b[2J", "\x9b", "\x07", "\x08", "\u202e"):
        assert what not in terminal.output


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunError(EVIL), 1, f"error: {ESCAPED}\n"),
        (
            OSError(2, "No such file or directory", f"/x/{EVIL}"),
            1,
            f"error: No such file or directory: /x/{ESCAPED}",
        ),
        (
            BlockingIOError(11, "Resource temporarily unavailable"),
            1,
            "no more processes or threads; end some, or",
        ),
        (
            RuntimeError("can't start new thread"),
            1,
            "no more processes or threads; end some, or raise the limit",
        ),
        (MemoryError(), 1, "error: there is not enough memory"),
        (
            UnicodeEncodeError("ascii", "caf\u00e9", 3, 4, "no"),
            2,
            "'\u00e9' cannot be written in the characters of",
        ),
        (UnicodeDecodeError("ascii", b"\xc3", 0, 1, "no"), 2, "no text in this locale (ascii)"),
        (KeyError(EVIL), 1, "error: a fault of flannel-pl, please report it: KeyError: 'a\\x1b[2J"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_whatever_ends_a_verb_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    words: str,
    debug: bool,
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setitem(verbs.VERBS, "info", ("fails", fail))
    assert main(["info", *(["--debug"] if debug else [])]) == code
    said = capsys.readouterr().err
    assert words in said
    assert ("Traceback" in said) == (debug or isinstance(error, KeyError))
    assert "\x1b" not in said
    assert debug or isinstance(error, KeyError) or len(said.splitlines()) == 1


def test_an_ascii_locale(evil_folder: Path) -> None:
    folder = evil_folder.rename(evil_folder.with_name("caf\u00e9 \u0e20"))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    for verb in ("info", "verify", "status"):
        command = [sys.executable, "-W", "ignore", "-m", "flannel_pl", verb, str(folder)]
        process = subprocess.run(command, env=environment, capture_output=True)
        said = (process.stdout + process.stderr).decode("ascii")
        assert "Traceback" not in said
        assert r"caf\udcc3\udca9 \udce0\udcb8\udca0" in said
        assert process.returncode == (2 if verb == "status" else 0)
