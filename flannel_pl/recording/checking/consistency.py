"""Whether the files of an experiment agree: its record, its runs' recordings, what was gathered, masks."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.belonging import (
    contradictions,
    gathered_contradictions,
    index_contradictions,
    not_belonging,
)
from flannel_pl.recording.checking.presence import check_presence
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.recording.experiment_tensors import experiment_tensors
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.gathering.copying import copy_damage
from flannel_pl.recording.gathering.index import index_content
from flannel_pl.recording.gathering.notes import GatherNotes
from flannel_pl.recording.integrity.findings import CheckedPart
from flannel_pl.recording.masks import mask_problems, read_masks
from flannel_pl.small_files import read_small


def check_folder(paths: ExperimentPaths) -> Iterator[CheckedPart]:
    """Yields, for an experiment's folder, every run that is not there, and whatever does not agree.

    A file that cannot be read at all is not mentioned: checking it says so.
    """
    try:
        record = read_record(paths)
    except RunError as error:
        yield _problem(paths.record, str(error))
        return
    growing = list(_check_growing_file(paths, record))
    yield from growing
    yield from check_presence(paths, record, growing={part.run for part in growing})
    yield from _foreign_files(paths, record)
    for path, sentence in _folder_problems(paths, record):
        yield _problem(path, sentence)


def check_index(index: Path) -> Iterator[CheckedPart]:
    """Yields what is wrong with an index: it can be made anew from the files it names."""
    for path, sentence in _index_problems(index):
        yield _problem(path, sentence)


def _check_growing_file(paths: ExperimentPaths, record: ExperimentRecord) -> Iterator[CheckedPart]:
    """Checks the runs in a gathered file that still waits for others."""
    path, start_s = paths.growing, time.monotonic()
    try:
        notes = GatherNotes.read(paths.growing_notes) if os.path.lexists(path) else None
        if notes is None:
            return
        layout = notes.layout(experiment_tensors(paths, record))
        for index, metadata in notes.runs.items():
            damage = tuple(copy_damage(path, layout, index, metadata))
            num_rows, num_bytes = metadata["num_rows"], sum(s.num_bytes for s in notes.taken(index).values())
            elapsed_s, start_s = time.monotonic() - start_s, time.monotonic()
            yield CheckedPart(path, index, num_rows, num_bytes, elapsed_s, damage, unfinished=True)
    except RunError as error:
        yield _problem(path, str(error))


def _problem(path: Path, sentence: str, *, foreign: bool = False) -> CheckedPart:
    return CheckedPart(path, None, 0, 0, 0.0, (sentence,), foreign=foreign)


def _foreign_files(paths: ExperimentPaths, record: ExperimentRecord) -> Iterator[CheckedPart]:
    """Yields the finished recordings that are another experiment's."""
    check: dict[Path, Callable[..., Iterator[str]]] = {
        paths.run(index).recording: partial(contradictions, index=index) for index in record.indices
    }
    check |= dict.fromkeys((paths.gathered, paths.index_extras), gathered_contradictions)
    for path, wrong in check.items():
        metadata = _metadata(path)
        if metadata is not None and (sentences := list(wrong(metadata, record))):
            yield _problem(path, f"it {not_belonging(sentences, paths)}", foreign=True)


def _folder_problems(paths: ExperimentPaths, record: ExperimentRecord) -> Iterator[tuple[Path, str]]:
    for path in (paths.gathered, paths.index_extras):
        for name in ("name", "provenance"):
            metadata = _metadata(path)
            if metadata is not None and metadata.get(name) != record.content.get(name):
                yield (
                    path,
                    f"its {name} is not the one of {paths.record.name}; bring back the one that belongs here",
                )
    if paths.index.exists():
        yield from _index_problems(paths.index)
    if paths.masks.exists():
        for sentence in _mask_problems(paths.masks, record):
            yield paths.masks, sentence


def _metadata(path: Path) -> dict[str, Any] | None:
    """Returns what a file says of itself; None if it is not there or cannot be read."""
    try:
        return read_header(path).flannel if path.exists() else None
    except RunError:
        return None


def _index_problems(index: Path) -> Iterator[tuple[Path, str]]:
    paths = ExperimentPaths.of_index(index)
    try:
        extras = read_header(paths.index_extras)
        headers = {paths.index_extras: extras}
        for run in extras.flannel.get("runs", []):
            shard = paths.run(run["index"]).recording
            headers[shard] = read_header(shard)
            if wrong := list(index_contradictions(headers[shard].flannel, extras.flannel)):
                sentence = f"it is not the recording that the index was made for: {'; '.join(wrong)}"
                yield shard, f"{sentence}; bring that one back, or gather again"
        if read_small(index) != index_content(index.parent, headers):
            yield index, "it is not as it was written; gather again with --mode index"
    except OSError as error:
        yield index, f"it cannot be read: {error.strerror}"
    except RunError as error:
        yield index, str(error)


def _mask_problems(path: Path, record: ExperimentRecord) -> Iterator[str]:
    """Yields what is wrong with a masks file; all of it follows from the counts, whose hash is recorded."""
    try:
        masks = read_masks(path)
    except RunError as error:
        yield str(error)
        return
    yield from mask_problems(masks, record.data_digests.get("masks"))
