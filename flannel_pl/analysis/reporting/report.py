"""The report: what recordings show, as a page, figures and tables in a folder.

Recordings are measured (`all_runs`), the measures drawn (`gallery`), put into words (`summary`) and tables
(`files`), and all of it into a folder. What was measured is kept beside the recording, so that a
report made again reads only what has changed.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from flannel_pl.analysis.drawing.charts import Chart
from flannel_pl.analysis.drawing.gallery import GALLERY, Kind, own_figures
from flannel_pl.analysis.drawing.panels import Band, for_page, save
from flannel_pl.analysis.measuring.all_runs import measure_experiment, title_of
from flannel_pl.analysis.measuring.one_run import EVERY_SERIES, SCALARS
from flannel_pl.analysis.measuring.token_sets import SET_NAMES, token_ids, token_sets
from flannel_pl.analysis.reporting.animation import asked_file, refuse_recording, write_animation
from flannel_pl.analysis.reporting.background import background_of
from flannel_pl.analysis.reporting.files import tables_of
from flannel_pl.analysis.reporting.interaction import interaction_of
from flannel_pl.analysis.reporting.page import Picture, render
from flannel_pl.analysis.reporting.reported import Reported, named_groups
from flannel_pl.analysis.reporting.summary import bands_of, page_of
from flannel_pl.analysis.reporting.tables import METRICS_COLUMNS
from flannel_pl.analysis.statistics.groups import shown_set
from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.metrics.row_metrics import ROW_METRICS, RowMetric, find_metrics
from flannel_pl.paths import bare_name
from flannel_pl.recording.reader import Recording, open_recording
from flannel_pl.recording.writing.disk import make_folder, why_not_writable, write_file

Progress = Callable[[str, int, int], object]
"""Called with "measuring", "animating" or "drawing", how much is done, and how much there is: bytes, rows and
frames, or figures."""

MEASURED = "measured"
"""Folder, in a recording's own report, of what was measured of it."""

FIGURES = "figures"

NUMBERED = re.compile(
    r"(metrics|tokens)(_\d+)?\.csv|(steps|key_figures)_\w+\.csv|(distances|epochs|published)\.csv"
)
"""Tables that a report may have written."""


@dataclass(frozen=True)
class Report:
    """What `report` made."""

    page: Path
    """index.html."""

    measured_bytes: int
    """Recorded bytes that were read; what had not changed since the last report was not."""

    animation: Path | None = None
    """The file that moves, if it was asked for."""


def report(
    *paths: str | Path,
    out: str | Path | None = None,
    token_set: str = "dead",
    metrics: Sequence[str] = (),
    animation: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Makes a report of one recording, or of several laid over one another.

    Args:
        paths: Anything `open_recording` takes: an experiment's folder, a gathered file, an index, a shard.
        out: Folder to write to; None = `report` in the folder of the one recording (beside a single file
            NAME_report), and for several `report` in the current folder.
        token_set: dead, live or all: whose figures are drawn. Tables of numbers have all three.
        metrics: Import paths of further `RowMetric`s to measure and draw.
        animation: A .gif, or an animated .png, to draw besides: how the dead tokens of the first run move.
        progress: Called while it works.

    Returns:
        Where everything is.

    Raises:
        UserError: If there is no recording, no such token set, nothing can be written, or not be animated.
        RunError: If a file cannot be read, or the disk fails.

    Example:
        >>> report("runs/quickstart").page.as_posix()
        'runs/quickstart/report/index.html'
    """
    _refuse(paths, token_set)
    progress = progress or (lambda stage, done, total: None)
    own = _own_metrics(metrics)
    film = asked_file(animation, paths)
    with ExitStack() as stack:
        recordings = [stack.enter_context(open_recording(path)) for path in paths]
        if film is not None:
            refuse_recording(recordings[0])
        folder = _make_folder(recordings, out)
        experiments, num_bytes = _measure(recordings, folder, own, progress)
        if film is not None:
            num_bytes += write_animation(film, recordings[0], experiments[0].measures, progress)
    shown = shown_set([run for one in experiments for run in one.measures.runs], token_set)
    bands = bands_of(experiments, shown)
    kinds = [*GALLERY, *own_figures(own)]
    pictures, charts, missing = _draw(folder, experiments, shown, kinds, bands, progress)
    texts = tables_of(experiments)
    _write_tables(folder, {name: text for name, (text, _) in texts.items()})
    page = page_of(
        experiments,
        shown,
        asked=token_set,
        pictures=pictures,
        missing=missing,
        files=[(name, what) for name, (_, what) in texts.items()],
    )
    page = replace(page, interactive=interaction_of(experiments, charts, bands))
    write_file(folder / "index.html", render(page).encode())
    return Report(folder / "index.html", num_bytes, film)


def _refuse(paths: Sequence[str | Path], token_set: str) -> None:
    """Refuses what no report can be of."""
    if token_set not in SET_NAMES:
        raise UserError(f"the token set is {token_set!r}, expected one of {', '.join(SET_NAMES)}")
    if not paths:
        raise UserError("there is nothing to report: expected at least one recording")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"a recording is given twice: {', '.join(map(str, paths))}; expected different ones")


def _own_metrics(names: Sequence[str]) -> dict[str, RowMetric]:
    """Returns somebody's own metrics, none of which is called like one that every report has."""
    known = {*ROW_METRICS, *(kind.name for kind in GALLERY), *EVERY_SERIES, *SCALARS, *METRICS_COLUMNS}
    if needless := known.intersection(names):
        raise UserError(f"--metrics has {', '.join(sorted(needless))}, which every report has; leave it out")
    own = find_metrics(names, option="--metrics", table={})
    if taken := known.intersection(own):
        raise UserError(
            f"--metrics has {', '.join(sorted(taken))}, which every report has; give yours another name"
        )
    return own


def home_of(path: Path) -> Path:
    """Returns where the report of a single recording is unless it is asked for elsewhere.

    Example:
        >>> home_of(Path("old/flannel1.safetensors")).as_posix()
        'old/flannel1_report'
    """
    if path.is_dir():
        return path / "report"
    return path.parent / f"{bare_name(path)}_report"


def _make_folder(recordings: Sequence[Recording], out: str | Path | None) -> Path:
    """Makes the folder of the report, unless it is there."""
    folder = _folder(recordings, out)
    if reason := why_not_writable(folder):
        raise UserError(f"cannot write the report to {folder}: {reason}; choose a folder with --out")
    make_folder(folder)
    return folder


def _folder(recordings: Sequence[Recording], out: str | Path | None) -> Path:
    if out is not None:
        if Path(out).exists() and not Path(out).is_dir():
            raise UserError(f"--out is {out}, which is a file; expected a folder, which need not exist")
        _refuse_recordings(Path(out))
        return Path(out)
    return home_of(recordings[0].path) if len(recordings) == 1 else Path("report")


def _refuse_recordings(folder: Path) -> None:
    """Keeps a report out of a folder in which training writes: there is a metrics.csv already."""
    run, experiment = RunPaths(folder), ExperimentPaths(folder, folder.name)
    for path in (experiment.record, run.recording, run.partial, run.config):
        if path.exists():
            raise UserError(f"--out is {folder}, where {path.name} is; expected a folder of the report's own")


def _write_tables(folder: Path, texts: Mapping[str, str]) -> None:
    for path in folder.glob("*.csv"):
        if path.name not in texts and NUMBERED.fullmatch(path.name):  # of an earlier report
            path.unlink()
    for name, text in texts.items():
        write_file(folder / name, text.encode())


def _cache_folder(recording: Recording, folder: Path, number: int) -> Path:
    """Returns where measures are kept: at the recording's home, or with the report if that is read-only."""
    home = home_of(recording.path)
    if why_not_writable(home):
        return folder / MEASURED / str(number)
    return home / MEASURED


def _measure(
    recordings: Sequence[Recording], folder: Path, own: Mapping[str, RowMetric], progress: Progress
) -> tuple[list[Reported], int]:
    done = total = 0

    def expect(num_bytes: int) -> None:
        nonlocal total
        total += num_bytes

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("measuring", done, total)

    experiments = []
    for number, (recording, name) in enumerate(zip(recordings, _names(recordings), strict=True)):
        measures = measure_experiment(
            recording,
            own=own,
            cache_folder=_cache_folder(recording, folder, number),
            expect=expect,
            advance=advance,
        )
        shown = {int(token) for cloud in measures.clouds for token in cloud.tokens_S}
        texts = {token: text for text, token in recording.vocabulary.items() if token in shown}
        experiments.append(Reported(name, measures, background_of(recording), _token_ids(recording), texts))
    return experiments, done


def _names(recordings: Sequence[Recording]) -> list[str]:
    """Returns the experiments' names; with their paths where two have the same."""
    titles = [title_of(recording) for recording in recordings]
    names = []
    for title, recording in zip(titles, recordings, strict=True):
        alike = [one.path.resolve() for own, one in zip(titles, recordings, strict=True) if own == title]
        common = os.path.commonpath([path.parent for path in alike])
        place = f" ({os.path.relpath(recording.path.resolve(), common)})" if len(alike) > 1 else ""
        names.append(title + place)
    return names


def _token_ids(recording: Recording) -> dict[int, dict[str, Array]]:
    """Returns the vocabulary ids of each run's token sets."""
    result = {}
    for run in recording:
        if run.has_token_rows:
            sets, _ = token_sets(recording, run)
            ids_V = token_ids(run)
            result[run.index] = {name: ids_V[positions] for name, positions in sets.items()}
    return result


def _draw(
    folder: Path,
    experiments: Sequence[Reported],
    token_set: str,
    kinds: Sequence[Kind],
    bands: Sequence[Band],
    progress: Progress,
) -> tuple[list[Picture], dict[str, Chart], list[Kind]]:
    """Writes the figures; returns them for the page, their charts, and the kinds of which there is none."""
    several = [(one.name, one.measures) for one in experiments]
    drawn_of = several if len(several) > 1 else several[0][1]
    groups = [group for _, group in named_groups(experiments)]
    said = {"alone": len(groups) == 1, "several_runs": any(len(group.runs) > 1 for group in groups)}
    make_folder(folder / FIGURES)
    pictures, charts, missing = [], dict[str, Chart](), []
    for number, kind in enumerate(kinds):
        progress("drawing", number, len(kinds))
        path = folder / FIGURES / kind.name
        figure = kind.draw(drawn_of, token_set=token_set, bands=bands)
        if figure is None:
            missing.append(kind)
            for suffix in (".png", ".svg"):  # of an earlier report
                path.with_suffix(suffix).unlink(missing_ok=True)
            continue
        png, svg = save(figure, path)
        files = {"PNG": f"{FIGURES}/{png.name}", "SVG": f"{FIGURES}/{svg.name}"}
        svg_text = for_page(svg.read_text(encoding="utf-8"))
        if (chart := kind.chart(drawn_of, token_set=token_set)) is not None:
            charts[kind.name] = chart
        shown = kind.name if chart is not None else ""
        caption = kind.words(**said, shaded=bool(bands))
        pictures.append(Picture(kind.heading, svg_text, caption, kind.formula, files, shown))
    progress("drawing", len(kinds), len(kinds))
    return pictures, charts, missing
