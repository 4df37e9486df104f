"""The one way to the terminal: what is printed is text, wherever it comes from, and steers nothing.

Names, metadata and paths of a foreign file may hold escape sequences, and a terminal may lack the characters
of an honest one. So nothing is escaped where it is printed, but here, where everything comes through.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

NOTEBOOK_WIDTH = 100
"""Characters in a line that a notebook shows."""

_SUSPECT = re.compile(r"[^\n\t -~]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_REDRAWS = re.compile(r"\r(?!\n)|\x1b\[[0-9;?]*[^0-9;?m]")


def printable(text: str) -> str:
    """Escapes what would break a line, steer the terminal, or cannot be printed at all."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_terminal() -> bool:
    """Tells whether what is printed is seen on a terminal, so that it may be drawn over."""
    stream = _beneath(sys.stdout)
    return stream is not None and stream.isatty()


@contextmanager
def plain_text() -> Iterator[None]:
    """Lets only text through `sys.stdout` and `sys.stderr`: lines and tabs, all else escaped.

    A character that the stream's encoding does not have is escaped, too, instead of ending the program.
    """
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _text(sys.stdout), _text(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = previous


@contextmanager
def drawn_upon() -> Iterator[None]:
    """Lets libraries that know nothing of this module draw, Lightning's progress bar for one."""
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _drawing(sys.stdout), _drawing(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = previous


def goes_to(stream: TextIO | None, file: io.FileIO) -> bool:
    """Tells whether what is printed to `sys.stdout` or `sys.stderr` ends up in a file."""
    base = _beneath(stream)
    try:
        return base is not None and os.path.samestat(os.fstat(base.fileno()), os.fstat(file.fileno()))
    except (OSError, ValueError):  # it has no file
        return False


@contextmanager
def copied_to(log: io.FileIO, *, stdout: bool, stderr: bool, moves: bool = False) -> Iterator[None]:
    """Writes what is printed to a log as well, but not what only draws over what was there before.

    Args:
        log: Where, as UTF-8. If it cannot be written, that costs the copy and nothing else.
        stdout: Whether to copy what goes to `sys.stdout`.
        stderr: Whether to copy what goes to `sys.stderr`.
        moves: Whether what goes to `sys.stdout`, and what is logged, goes to the log instead.
    """
    previous = sys.stdout, sys.stderr
    if stdout:
        sys.stdout = cast(TextIO, _Copying(None, log)) if moves else _copying(sys.stdout, log)
    sys.stderr = _copying(sys.stderr, log) if stderr else sys.stderr
    now = (sys.stdout, sys.stdout if moves and stdout else sys.stderr)
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    found = {id(handler): handler for logger in loggers for handler in logger.handlers}
    # Those that were made before hold on to the stream that they found.
    moved = [
        (handler, handler.stream, new)
        for handler in found.values()
        if isinstance(handler, logging.StreamHandler)
        for old, new in zip(previous, now, strict=True)
        if _beneath(handler.stream) is _beneath(old)
    ]
    for handler, _, new in moved:
        handler.setStream(new)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = previous
        for handler, old, _ in moved:
            handler.setStream(old)


def make_console(
    *, stderr: bool = False, file: TextIO | None = None, width: int | None = None, record: bool = False
) -> "Console":
    """Returns a rich console whose colors and movements are its own, and whose texts are escaped.

    Args:
        stderr: Whether it is for `sys.stderr`, not `sys.stdout`.
        file: Where else to write.
        width: Characters in a line; None = as wide as the terminal is.
        record: Whether it can be asked for what it has shown.
    """
    # Here, not at the top: most verbs draw nothing.
    from rich.console import Console, ConsoleOptions, RenderableType, RenderHook
    from rich.file_proxy import FileProxy
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=_escaped(segment.text))

        def push_render_hook(self, hook: RenderHook) -> None:
            # A live display is about to begin, and has put what is printed meanwhile under way to this
            # console, by a detour on which it takes escape sequences for its own.
            super().push_render_hook(hook)
            for name in ("stdout", "stderr"):
                if isinstance(stream := getattr(sys, name), FileProxy):
                    setattr(sys, name, _Text(cast(TextIO, stream)))

    place = file or _drawing(sys.stderr if stderr else sys.stdout)
    # Not what rich does in notebooks, where its tables come with escape sequences.
    return SafeConsole(file=place, width=width, record=record, force_jupyter=False)


def as_html(renderable: "RenderableType") -> str:
    """Returns what a console would show, as HTML; colours come along, control characters do not.

    Args:
        renderable: A table, or whatever else rich draws.
    """
    console = make_console(file=io.StringIO(), width=NOTEBOOK_WIDTH, record=True)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


class _Stream(io.TextIOBase):
    """Text to `stream`, escaped where its encoding has no such character; None = nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.stream is not None:
            self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()

    def close(self) -> None:
        """Leaves the stream open, which is not ours."""


class _Drawing(_Stream):
    """For who draws: a terminal if `stream` is one."""

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        return super().fileno() if self.stream is None else self.stream.fileno()


class _Text(_Stream):
    """For who prints: never a terminal, so that nobody thinks of coloring what is printed."""

    def write(self, text: str) -> int:
        super().write(_escaped(text))
        return len(text)


class _Copying(io.TextIOBase):
    """Text to `stream` and to a log."""

    def __init__(self, stream: TextIO | None, log: io.FileIO) -> None:
        self._drawing, self._log = _Drawing(stream), log

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._drawing.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._drawing.isatty()

    def fileno(self) -> int:
        return self._drawing.fileno()

    def write(self, text: str) -> int:
        self._drawing.write(text)
        if not _REDRAWS.search(text):
            with suppress(OSError, ValueError):
                self._log.write(_COLORS.sub("", text).encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        self._drawing.flush()


def _copying(stream: TextIO | None, log: io.FileIO) -> TextIO:
    copying = cast(TextIO, _Copying(_beneath(stream), log))
    return cast(TextIO, _Text(copying)) if isinstance(stream, _Text) else copying


def _text(stream: TextIO | None) -> TextIO:
    return cast(TextIO, stream if isinstance(stream, _Text) else _Text(stream))


def _drawing(stream: TextIO | None) -> TextIO:
    return cast(TextIO, _Drawing(_beneath(stream)))


def _beneath(stream: TextIO | None) -> TextIO | None:
    while isinstance(stream, _Stream):
        stream = stream.stream
    return stream


def _escaped(text: str) -> str:
    """Escapes all but lines and tabs."""
    return _SUSPECT.sub(lambda match: printable(match[0]), text)
