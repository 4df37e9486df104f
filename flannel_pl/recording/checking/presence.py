"""Which files an experiment's folder must have, as its record says, and which of them are not there.

A run's config.yaml, journal and log are not asked for: no recorded bit depends on them.
"""

import os
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.gathering.gathered import runs_in_finished_file, was_finished
from flannel_pl.recording.integrity.findings import CheckedPart


def missing(path: Path, sentence: str) -> CheckedPart:
    """Returns what `verify` says of a file that is not there."""
    return CheckedPart(path, None, 0, 0, 0.0, (f"it is not there{sentence}",), missing=True)


def check_presence(
    paths: ExperimentPaths, record: ExperimentRecord, *, growing: Collection[int | None]
) -> Iterator[CheckedPart]:
    """Yields every file that should be there and is not, and every run that is not finished.

    Args:
        paths: The experiment's files.
        record: What it says of itself.
        growing: Runs in a gathered file that still grows.
    """
    if record.has_tokens and not os.path.lexists(paths.masks):
        yield missing(paths.masks, "; bring it back from where the experiment's masks came from")
    gathered = runs_in_finished_file(paths, record)
    finished, lost = True, []
    for index in record.indices:
        files = paths.run(index)
        if os.path.lexists(files.recording):
            continue
        if index in gathered:
            if record.keeps_shards or record.gather != "single":
                where = f"the copy in {paths.gathered.name} is all there is of this run"
                yield missing(files.recording, f", and experiment.keep_shards is true; {where}")
        elif os.path.lexists(files.partial):
            finished = False
        elif index not in growing:
            if was_finished(paths, index):
                hint = "bring it back, or flannel-pl fit records it again"
                lost.append(missing(files.recording, f", although the run was finished; {hint}"))
            else:
                finished = False
                yield CheckedPart(files.recording, index, 0, 0, 0.0, unfinished=True)
    if not (finished and record.gather == "single" and not record.keeps_shards):
        yield from lost  # else what is lost is the one file that had them
    if finished and not growing and record.settings.experiment.run is None:
        yield from _missing_recording(paths, record)


def _missing_recording(paths: ExperimentPaths, record: ExperimentRecord) -> Iterator[CheckedPart]:
    """Yields what gathering makes and is not there, of an experiment whose runs are finished."""
    wanted = {"single": [paths.gathered], "index": [paths.index_extras, paths.index], "none": []}
    for path in wanted[record.gather]:
        if os.path.lexists(path):
            continue
        if all(os.path.lexists(paths.run(index).recording) for index in record.indices):
            again = f"flannel-pl gather {shlex.quote(str(paths.folder))}"
            yield missing(path, f", although every run is finished; make it with: {again}")
        else:
            yield missing(path, ", although every run was finished; bring it back from a copy")
