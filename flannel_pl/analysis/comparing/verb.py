"""The verb compare."""

import re
import time
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from flannel_pl.analysis.comparing.compare import compare
from flannel_pl.analysis.comparing.text import describe_comparison, summarize_comparison
from flannel_pl.errors import UserError
from flannel_pl.recording.writing.disk import why_not_writable
from flannel_pl.terminal import make_console

PLOT_SUFFIXES = (".png", ".svg")


def compare_verb(a: Path, b: Path, runs: str | None = None, plot: Path | None = None) -> int:
    """Compares two recordings, to the bit: where they part, and how far they drift apart.

    Args:
        a: A recording (.safetensors), an index (.safetensors.index.json), a run's or experiment's folder.
        b: Another.
        runs: Which run of A to compare with which of B: 0:3, or several, 0:3,1:4. Without it every run that
            both have, or the one of each.
        plot: Where to draw the distance of every tensor over the steps, .png or .svg.

    Returns:
        0 if they are equal, else 1.
    """
    pairs = None if runs is None else _parse_pairs(runs)
    if plot is not None:
        _check_plot(plot)
    start_s = time.monotonic()
    console = make_console(stderr=True)
    columns = (TextColumn("Comparing"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Comparing", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        comparison = compare(a, b, runs=pairs, progress=show)
    verdict = summarize_comparison(comparison, elapsed_s=time.monotonic() - start_s)
    print(describe_comparison(comparison))
    try:
        if plot is not None:
            from flannel_pl.analysis.comparing.plot import save_plot  # which imports matplotlib

            save_plot(comparison, plot)
            print(f"plot: {plot}")
    finally:  # it took minutes to find out
        print(verdict)
    return 0 if comparison.equal else 1


def _parse_pairs(text: str) -> list[tuple[int, int]]:
    """Reads "0:3,1:4"."""
    pairs = [re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\s*", part) for part in text.split(",")]
    if not all(pairs):
        raise UserError(
            f"--runs is {text!r}, expected a run of A and one of B, e.g. 0:3, or several: 0:3,1:4"
        )
    return [(int(pair[1]), int(pair[2])) for pair in pairs if pair]


def _check_plot(path: Path) -> None:
    if path.suffix not in PLOT_SUFFIXES:
        raise UserError(f"--plot is {path}, expected a file that ends in {' or '.join(PLOT_SUFFIXES)}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--plot is {path}, but there is no folder {folder}; make it first")
    if path.is_dir():
        raise UserError(f"--plot is {path}, which is a folder; expected a file in it")
    if reason := why_not_writable(folder):
        raise UserError(f"--plot is {path}, but {folder} cannot be written: {reason}; choose another folder")
