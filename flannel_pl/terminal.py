"""The one way to the terminal: what is printed is text, wherever it comes from, and steers nothing.

Names, metadata and paths of a foreign file may hold escape sequences, and a terminal may lack the characters
of an honest one. So nothing is escaped where it is printed, but here, where everything comes through.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

_SUSPECT = re.compile(r"[^\n\t -~]")


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


def make_console(*, stderr: bool = False) -> "Console":
    """Returns a rich console whose colors and movements are its own, and whose texts are escaped.

    Args:
        stderr: Whether it is for `sys.stderr`, not `sys.stdout`.
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

    return SafeConsole(file=_drawing(sys.stderr if stderr else sys.stdout))


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
