"""What a long preparation shows meanwhile: a bar on a terminal, one line elsewhere; always on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flannel_pl.terminal import make_console


@contextmanager
def stages(title: str, *, total: int, show: bool) -> Iterator[Callable[[str], None]]:
    """Shows progress through a known number of stages.

    Args:
        title: What is being done, e.g. "preparing the built-in corpus".
        total: Number of stages.
        show: False shows nothing at all.

    Yields:
        A function to call with a stage's name when that stage starts.
    """
    console = make_console(stderr=True)
    if show and not console.is_terminal:
        print(f"{title} ...", file=sys.stderr, flush=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not (show and console.is_terminal)
    ) as bar:
        task = bar.add_task(title, total=total)
        begun = 0

        def begin(stage: str) -> None:
            nonlocal begun
            bar.update(task, description=f"{title}: {stage}", completed=begun)
            begun += 1

        yield begin
