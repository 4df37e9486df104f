"""The verb report."""

import time
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flannel_pl.errors import UserError
from flannel_pl.recording.writing.disk import readable_bytes
from flannel_pl.terminal import make_console


def report_verb(
    paths: list[Path],
    out: Path | None = None,
    tokens: Literal["dead", "live", "all"] = "dead",
    metrics: list[str] | str | None = None,
    animation: Path | None = None,
) -> None:
    """Shows what a recording holds: metrics, epochs, figures, as a page (index.html), CSV, PNG and SVG.

    Args:
        paths: A recording (.safetensors), an index (.safetensors.index.json), a run's or experiment's folder;
            several are laid over one another.
        out: Folder to write to. Default: report in the folder of the one recording, and for several in the
            current folder.
        tokens: Whose figures are drawn; the tables have all three.
        metrics: Import paths of your own metrics, to be measured and drawn besides, e.g. [my_lab.alignment].
        animation: FILE.gif or FILE.png (an animated PNG) to draw besides: how the dead tokens of the first
            run move, in ten seconds.
    """
    if not paths:
        raise UserError("report needs a recording: a folder, a .safetensors file or its index")
    from flannel_pl.analysis.reporting.report import report  # which imports matplotlib

    start_s = time.monotonic()
    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage.capitalize())
            bar.update(tasks[stage], completed=done, total=total)

        own = [metrics] if isinstance(metrics, str) else metrics or ()
        made = report(*paths, out=out, token_set=tokens, metrics=own, animation=animation, progress=show)
    elapsed_s = time.monotonic() - start_s
    print(f"report: {made.page}")
    if made.animation is not None:
        print(f"animation: {made.animation}, {readable_bytes(made.animation.stat().st_size)}")
    if made.measured_bytes:
        print(f"{readable_bytes(made.measured_bytes)} read and drawn in {elapsed_s:.1f} s")
    else:
        # They have not changed since the last report, or there are none.
        print(f"no embeddings had to be read; drawn in {elapsed_s:.1f} s")
