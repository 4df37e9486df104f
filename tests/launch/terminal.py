"""A process on a terminal of its own, for what is shown on terminals only."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType


class Terminal:
    """Runs `command` on a terminal of the given size and reads what it prints."""

    def __init__(self, command: Sequence[str], *, columns: int, lines: int) -> None:
        self._fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        dropped = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, env={**environment, "TERM": "xterm-256color"}
        )
        os.close(inside)
        self.output = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def wait_for(self, text: str, *, timeout_s: float = 30.0) -> None:
        """Reads until `text` has been printed since the last such call."""
        seen, deadline_s = len(self.output), time.monotonic() + timeout_s
        while text not in self.output[seen:]:
            assert time.monotonic() < deadline_s, self.output
            assert self._read(), self.output

    def end(self, *, timeout_s: float = 30.0) -> int:
        """Reads the rest and returns the exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline_s, self.output
        return self.process.wait(timeout_s)

    def screen(self) -> list[str]:
        """Returns the lines that can be seen, as far as cursor movements within them go."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.output):
            if token == "\r":
                column = 0
            elif token == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif token == "\x1b[2K":
                lines[row] = ""
            elif up := re.fullmatch(r"\x1b\[(\d+)A", token):
                row -= int(up[1])
            elif not token.startswith("\x1b"):
                lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
                column += len(token)
        return "\n".join(line.rstrip() for line in lines).rstrip().split("\n")

    def _read(self) -> bool:
        """Reads what is there; False once the process has closed the terminal."""
        with contextlib.suppress(OSError):  # Linux says EIO for the end
            if not select.select([self._fd], [], [], 0.1)[0]:
                return True
            data = os.read(self._fd, 65536)
            self.output += data.decode("utf-8", "replace")
            return bool(data)
        return False
