"""Starts commands in processes of their own, some moments apart, and writes how they ended.

Run as a program, which imports everything once: so the moments between the starts are not lost in the seconds
that imports take.
"""

import json
import os
import sys
import time
from pathlib import Path

from flannel_pl.__main__ import main
from flannel_pl.cli import fit as _fit  # imported once, before the forks  # noqa: F401


def start(words: list[str], output: Path) -> int:
    """Forks a process that does what the command line says; returns its pid."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def start_pair(commands: list[list[str]], *, delay_s: float, output: Path) -> list[int]:
    """Starts two commands; returns their pids."""
    first = start(commands[0], output / "0.txt")
    time.sleep(delay_s)
    return [first, start(commands[1], output / "1.txt")]


if __name__ == "__main__":
    pairs = json.loads(sys.stdin.read())
    results = []
    for pair in pairs:
        pids = start_pair(pair["commands"], delay_s=pair["delay_s"], output=Path(pair["output"]))
        results.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
    print(json.dumps(results))
