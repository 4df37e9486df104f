"""What of an experiment is gathered: every answer to that, for whoever asks. Nothing is changed, no row read.

From the quickest answer to the strictest: is there a file (`has_recording`), does it name every run
(`is_complete`), is nothing left to do (`is_gathered`); and which runs need no recording of their own any more
(`gathered_runs`).
"""

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flannel_pl.errors import RunError, Unreachable
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.writing.journal import Journal

if TYPE_CHECKING:
    from flannel_pl.recording.formats.files import Header
    from flannel_pl.recording.gathering.notes import GatherNotes

Mode = Literal["single", "index"]


def has_recording(paths: ExperimentPaths) -> bool:
    """Tells whether there is a file of gathering, right or not: all that can be told at a glance."""
    return paths.gathered.exists() or paths.index.exists()


def is_complete(paths: ExperimentPaths, record: ExperimentRecord) -> bool:
    """Tells whether the gathered file is there, with a header that is right and names every run.

    Raises:
        Unreachable: If it is there and cannot be read.
        RunError: If it is whole and another experiment's: it is neither this one's recording, nor replaced.
    """
    from flannel_pl.recording.belonging import gathered_contradictions, refuse_foreign

    if not is_there(paths.gathered):
        return False
    try:
        header = _header(paths)
    except Unreachable:  # it may be complete, and the only copy of everything
        raise
    except RunError:
        return False
    if not header.header_is_right:
        return False
    refuse_foreign(paths.gathered, gathered_contradictions(header.flannel, record), paths)
    return True


def is_gathered(paths: ExperimentPaths, *, mode: Mode) -> bool:
    """Tells whether nothing is left to do: the recording is there, and nothing of gathering is left.

    Args:
        paths: The experiment's files. Another process may gather there meanwhile.
        mode: What the recording is to be, `single` or `index`.

    Raises:
        UserError: If it is no experiment's folder.
        RunError: If its record cannot be read.
    """
    if mode == "index":
        return is_there(paths.index)
    record = read_record(paths)
    left = [paths.growing, paths.growing_notes, paths.growing_moved]
    if not record.keeps_shards:
        left += [paths.run(index).recording for index in record.indices]
    return is_complete(paths, record) and not any(path.exists() for path in left)


def gathered_runs(folder: str | Path) -> frozenset[int]:
    """Returns the runs that are safe in the gathered file, finished or growing: they need no shard any more.

    Another process may gather meanwhile: a run that it has made safe is never missing.

    Args:
        folder: The experiment's folder.

    Raises:
        UserError: If it is no experiment's folder.
        RunError: If its record is damaged, or the notes are and runs may be lost by that.
    """
    paths = ExperimentPaths.find(Path(folder).absolute())
    record = read_record(paths)
    notes, damage = None, None
    # The growing file first: once it is the finished one, it is found there.
    try:
        notes = _notes(paths)
    except Unreachable:
        raise
    except RunError as error:
        damage = error
    if is_complete(paths, record):
        return frozenset(record.indices)
    if damage is not None:
        refuse_loss(damage, paths, record, record.indices)
    if notes is None:
        refuse_lost_notes(paths, record)
    return frozenset(() if notes is None else notes.runs)


def gathered_early_ends(paths: ExperimentPaths) -> dict[int, EarlyEnd]:
    """Returns how those gathered runs ended that ended early, by their number.

    Args:
        paths: The experiment's files. What is damaged there tells nothing.
    """
    told: dict[int, Mapping[str, Any]] = {}
    with contextlib.suppress(RunError):
        notes = _notes(paths)
        told |= {} if notes is None else notes.runs
    with contextlib.suppress(RunError):
        told |= {run["index"]: run for run in _header(paths).flannel.get("runs", [])}
    return {index: ended for index, one in told.items() if (ended := EarlyEnd.of(one)) is not None}


def runs_in_finished_file(paths: ExperimentPaths, record: ExperimentRecord) -> Collection[int]:
    """Returns the runs that the gathered file names; all, if it is there and cannot be read."""
    if not os.path.lexists(paths.gathered):
        return ()
    try:
        return {run["index"] for run in _header(paths).flannel.get("runs", [])}
    except RunError:
        return record.indices


def was_finished(paths: ExperimentPaths, index: int) -> bool:
    """Tells whether a run was finished once, as its journal says."""
    try:
        entry = Journal(paths.run(index).journal).read()
    except RunError:
        return False
    return entry is not None and entry.state == "done"


def refuse_loss(
    error: RunError, paths: ExperimentPaths, record: ExperimentRecord, suspects: Sequence[int]
) -> None:
    """Raises if damaged notes may be all that tells of a run whose own recording was dropped.

    Args:
        error: What is wrong with the notes or the growing file.
        paths: The experiment's files.
        record: Its record.
        suspects: Runs that may be in the growing file.

    Raises:
        RunError: Names them, and the ways out.
    """
    lost = [index for index in suspects if not is_there(paths.run(index).recording)]
    if lost and not record.keeps_shards and not is_complete(paths, record):
        raise RunError(
            f"{error}. Run {', '.join(map(str, lost))} may be in {paths.growing.name} and nowhere "
            f"else: bring both files back from a copy, or delete {paths.growing} to record them anew."
        ) from error


def refuse_lost_notes(paths: ExperimentPaths, record: ExperimentRecord) -> None:
    """Raises if a growing file without notes may have the only copy of a run that was finished once.

    Raises:
        RunError: As `refuse_loss` does.
    """
    if is_there(paths.growing) and not is_there(paths.growing_notes):
        suspects = [index for index in record.indices if was_finished(paths, index)]
        refuse_loss(RunError(f"{paths.growing_notes} is not there"), paths, record, suspects)


# What imports numpy is imported where it is needed: `status` asks, and starts at once.


def _header(paths: ExperimentPaths) -> "Header":
    from flannel_pl.recording.formats.files import read_header

    return read_header(paths.gathered)


def _notes(paths: ExperimentPaths) -> "GatherNotes | None":
    from flannel_pl.recording.gathering.notes import GatherNotes

    return GatherNotes.read(paths.growing_notes) if is_there(paths.growing) else None
