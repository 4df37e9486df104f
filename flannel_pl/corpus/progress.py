"""What a long preparation shows meanwhile: a bar on a terminal, lines elsewhere; always on stderr.

Its stages are calls into a library that looks at no signal until it returns, which may take minutes. They are
made in a thread, so that a signal ends the command at once.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flannel_pl.signals import interruptible
from flannel_pl.terminal import make_console

STILL_EVERY_S = 30.0
"""How often, where there is no bar, a line says that a stage is still going on."""

T = TypeVar("T")


class DoStage(Protocol):
    """Goes through a stage: shows its name, and returns what its work returns."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Does the work."""


@contextmanager
def stages(title: str, *, total: int, show: bool) -> Iterator[DoStage]:
    """Shows progress through a known number of stages.

    Args:
        title: What is being done, e.g. "preparing the built-in corpus".
        total: Number of stages.
        show: False shows nothing at all.

    Yields:
        A function that goes through a stage.

    Raises:
        Interrupted: On a signal; a stage may go on in the background until the process ends.
    """
    console = make_console(stderr=True)
    has_lines = show and not console.is_terminal
    if has_lines:
        print(f"{title} ...", file=sys.stderr, flush=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with (
        interruptible(),
        Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        ) as bar,
    ):
        task = bar.add_task(title, total=total)
        begun = 0

        def do(name: str, work: Callable[[], T]) -> T:
            nonlocal begun
            bar.update(task, description=f"{title}: {name}", completed=begun)
            begun += 1
            return _in_thread(work, still=f"{title}: still {name}" if has_lines else None)

        yield do


def _in_thread(work: Callable[[], T], *, still: str | None) -> T:
    """Returns what `work` returns; meanwhile says every now and then that it goes on."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="preparing", daemon=True).start()
    began_s = time.monotonic()
    while not wait([done], timeout=STILL_EVERY_S).done:
        if still is not None:
            print(f"{still}, {time.monotonic() - began_s:.0f} s so far", file=sys.stderr, flush=True)
    return done.result()
