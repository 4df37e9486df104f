"""The animation of a report: one run, as a file that moves."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flannel_pl.analysis.drawing.film import Film, film_frames, palette
from flannel_pl.analysis.drawing.film_file import FORMATS, film_bytes
from flannel_pl.analysis.measuring.cloud import cloud_bytes, measure_cloud
from flannel_pl.analysis.measuring.film import film_rows, frame_ms
from flannel_pl.analysis.measuring.one_run import why_no_tokens
from flannel_pl.analysis.measuring.results import Cloud, Measures
from flannel_pl.analysis.measuring.token_sets import token_ids, token_sets
from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.groups import groups_of
from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.reader import Recording
from flannel_pl.recording.writing.disk import make_folder, why_not_writable, write_file

LEAST_ROWS = 3


def asked_file(asked: str | Path | None, recordings: Sequence[str | Path]) -> Path | None:
    """Refuses a file that no animation can be, before anything is opened.

    Args:
        asked: The file; None = no animation is asked for.
        recordings: What is to be drawn.

    Returns:
        The file.

    Raises:
        UserError: If it has no known suffix, cannot be written, or there are several recordings.
    """
    if asked is None:
        return None
    path = Path(asked)
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"--animation is {path}, expected a file that ends in {' or '.join(FORMATS)} (an animated PNG)"
        )
    if path.is_dir():
        raise UserError(f"--animation is {path}, which is a folder; expected a file, which need not exist")
    if reason := why_not_writable(path.absolute().parent):
        raise UserError(f"cannot write the animation {path}: {reason}; choose another place with --animation")
    if len(recordings) > 1:
        raise UserError(
            f"--animation shows one recording, and {len(recordings)} are given: "
            f"{', '.join(map(str, recordings))}; name one of them, the others in reports of their own"
        )
    return path


def refuse_recording(recording: Recording) -> None:
    """Refuses a recording that no animation can be of, before anything is measured.

    Raises:
        UserError: If it has no embeddings, no dead tokens, too few rows, or runs that differ in more than
            their seed.
    """
    if len({repr(run.swept) for run in recording}) > 1:
        swept = ", ".join(sorted({key for run in recording for key in run.swept}))
        raise UserError(
            f"--animation shows runs that differ in their seed only, and those of {recording.path} differ in "
            f"{swept}; name the folder of one run instead"
        )
    run = recording.run(recording.runs[0])
    if not run.has_token_rows:
        raise UserError(f"--animation shows where tokens are, but of {recording.path} {why_no_tokens(run)}")
    sets, missing = token_sets(recording, run)
    if "dead" not in sets:
        raise UserError(
            f"--animation follows the dead tokens, of which {recording.path} has none: {missing['dead']}"
        )
    if run.num_rows < LEAST_ROWS:
        raise UserError(
            f"--animation takes {LEAST_ROWS} rows at least, and run {run.index} of {recording.path} has "
            f"{run.num_rows}; record more steps, or with a smaller recorder.every_n_steps"
        )


def write_animation(
    path: Path, recording: Recording, measures: Measures, progress: Callable[[str, int, int], object]
) -> int:
    """Draws the first run of a recording and writes the file, whole or not at all.

    Args:
        path: The file.
        recording: Open; `refuse_recording` has let it pass.
        measures: Of all its runs.
        progress: Called with "animating", how many rows and frames are done, and how many there are.

    Returns:
        How many recorded bytes were read: of the rows that are shown.

    Raises:
        UserError: If no row is finite.
        RunError: If a file cannot be read, or the disk fails.
    """
    run, done = recording.run(measures.runs[0].run), 0
    rows = film_rows(run.steps)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("animating", done, 2 * len(rows))

    cloud = measure_cloud(recording, run, measures.runs[0].label, rows=rows, advance=advance)
    radius_R = measures.runs[0].series["dead"]["origin_radius"]
    if cloud is None or not np.isfinite(radius_R).any():
        raise UserError(
            f"run {run.index} of {recording.path} has no animation: no row of it has finite weights"
        )
    film = _film(recording, measures, cloud)

    def drawn() -> Iterator[Array]:
        for frame_HW3 in film_frames(film):
            yield frame_HW3
            advance(1)

    make_folder(path.absolute().parent)
    write_file(path, film_bytes(drawn(), frame_ms(cloud.steps_F), path.suffix.lower(), palette_C3=palette()))
    return cloud_bytes(run, rows)


def _film(recording: Recording, measures: Measures, cloud: Cloud) -> Film:
    """Returns what the film shows of the first run."""
    run, measured = recording.run(cloud.run), measures.runs[0]
    sets, _ = token_sets(recording, run)
    *_, found = epochs_of(
        groups_of(measures)[0], "dead"
    )  # rule B, the one with re-expansions, if there is it
    rest_S = measured.tokens["dead"]["freeze_step"] if "dead" in measured.tokens else None
    if rest_S is not None:
        shown = np.isin(token_ids(run)[sets["dead"]], cloud.tokens_S[cloud.dead_S == 1])
        rest_S = rest_S[shown]  # both ascend
    return Film(
        cloud=cloud,
        steps_R=run.steps,
        radius_R=_finite(measured.series["dead"]["origin_radius"]),
        live_radius_R=_finite(measured.series["live"]["origin_radius"]) if "live" in sets else None,
        epochs=found.runs[0].intervals(int(run.steps[-1])),
        num_dead=len(sets["dead"]),
        num_live=len(sets.get("live", ())),
        rest_S=rest_S,
    )


def _finite(radius_R: Array) -> Array:
    """Returns a radius with gaps where it is not finite."""
    return np.where(np.isfinite(radius_R), radius_R, np.nan)
