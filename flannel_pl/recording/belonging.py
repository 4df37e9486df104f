"""Whether a file is of the experiment, the run or the index that it is found with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flannel_pl.errors import RunError
from flannel_pl.recording.formats.columns import said_columns
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.formats.schema import (
    KNOWN_SCHEMAS,
    SCHEMA_VERSION,
)
from flannel_pl.recording.sameness import decisive, differences, has_own_data

if TYPE_CHECKING:  # who only reads a recording needs no experiment
    from flannel_pl.experiment import Run
    from flannel_pl.paths import ExperimentPaths
    from flannel_pl.recording.experiment_record import ExperimentRecord

_SHARED = ("config", "header_checksum", "run", "schema")


def refuse_foreign_shard(paths: "ExperimentPaths", record: "ExperimentRecord", index: int) -> None:
    """Refuses run `index`'s finished recording if it is another experiment's, not if it is damaged.

    Raises:
        RunError: Names what contradicts the experiment.
    """
    path = paths.run(index).recording
    try:
        metadata = read_header(path).flannel
    except RunError:
        return
    refuse_foreign(path, contradictions(metadata, record, index), paths)


def refuse_foreign(path: Path, wrong: Iterable[str], paths: "ExperimentPaths") -> None:
    """Refuses a recording that contradicts its experiment.

    Raises:
        RunError: If it does in anything.
    """
    if sentences := list(wrong):
        raise RunError(f"{path} {not_belonging(sentences, paths)}")


def not_belonging(wrong: Sequence[str], paths: "ExperimentPaths") -> str:
    """Returns what is said of a file that contradicts its experiment, and what to do."""
    return (
        f"does not belong to this experiment: {'; '.join(wrong)}. Either it or {paths.record.name} was "
        "brought from elsewhere: bring back the one that belongs here."
    )


def contradictions(metadata: Mapping[str, Any], record: "ExperimentRecord", index: int) -> Iterator[str]:
    """Yields in what a shard's metadata contradict the experiment that it is to be part of.

    Args:
        metadata: What the shard says of itself.
        record: The experiment's record.
        index: Number of the run that the shard should be of.
    """
    run = record.runs[index]
    digests = {} if has_own_data(run.swept) else record.data_digests
    yield from run_contradictions(metadata, run, config=record.config, digests=digests)


def copy_contradictions(metadata: Mapping[str, Any], record: "ExperimentRecord", index: int) -> Iterator[str]:
    """Yields in what a run's entry in a gathered file, or in its notes, contradicts the experiment.

    Args:
        metadata: The `run_metadata` of the run.
        record: The experiment's record.
        index: Number of the run that it should be.
    """
    shared = {"run": index, "schema": SCHEMA_VERSION, "config": record.config}
    yield from contradictions({**metadata, **shared}, record, index)


def run_contradictions(
    metadata: Mapping[str, Any], run: "Run", *, config: Mapping[str, Any], digests: Mapping[str, str]
) -> Iterator[str]:
    """Yields in what a file's metadata contradict the run that it is to be of.

    Args:
        metadata: What the file says of itself.
        run: The run.
        config: Its config, or its experiment's.
        digests: Name of each data file that it is trained on -> hash of its content, as far as known.
    """
    if metadata.get("schema") not in KNOWN_SCHEMAS:
        yield f"its schema is {metadata.get('schema')!r}, expected one of {KNOWN_SCHEMAS}"
    for name, expected in (
        ("run", run.index),
        ("seed", run.seed),
        ("swept", run.swept),
    ):
        if metadata.get(name) != expected:
            yield f"its {name} is {metadata.get(name)!r}, expected {expected!r}"
    yield from other_config(metadata, config, swept=run.swept)
    yield from other_data(metadata.get("provenance", {}), digests)


def other_config(
    metadata: Mapping[str, Any], config: Mapping[str, Any], *, swept: Iterable[str]
) -> Iterator[str]:
    """Yields in what the config that a file's metadata have would give other bits than another config.

    Args:
        metadata: What the file says of itself.
        config: The config that is expected.
        swept: Keys that are compared elsewhere, with the run's swept values.
    """
    theirs, ours = (decisive(one, without=swept) for one in (metadata.get("config", {}), config))
    for key, got, wanted in differences(theirs, ours):
        yield f"its {key} is {got!r}, expected {wanted!r}"


def other_data(theirs: Mapping[str, Any], expected: Mapping[str, str]) -> Iterator[str]:
    """Yields each data file of which both sides know the hash, and not the same one."""
    got = theirs.get("data") or {}
    for name in sorted(got.keys() & expected.keys()):
        if got[name] != expected[name]:
            yield f"the content of the {name} is {got[name]!s:.12}, expected {expected[name]!s:.12}"


def gathered_contradictions(metadata: Mapping[str, Any], record: "ExperimentRecord") -> Iterator[str]:
    """Yields in what a gathered recording's metadata contradict the experiment that it is to be of."""
    if not has_runs(metadata, record):
        yield "its runs are not those of experiment.json"
    yield from other_config(metadata, record.config, swept=record.swept_keys)
    if not has_own_data(record.swept_keys):
        for run in metadata.get("runs", []):
            for sentence in other_data(run.get("provenance", {}), record.data_digests):
                yield f"run {run['index']}: {sentence}"


def has_runs(metadata: Mapping[str, Any], record: "ExperimentRecord") -> bool:
    """Tells whether a gathered recording names just the runs of an experiment."""
    runs = metadata.get("runs", [])
    there = [{"index": run["index"], "seed": run.get("seed"), "swept": run.get("swept")} for run in runs]
    return there == record.run_entries


def said_of_run(metadata: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns what a gathered recording says of one run: the shard's own metadata, but for what is shared."""
    return {**{key: value for key, value in metadata.items() if key not in _SHARED}, "index": index}


def index_contradictions(metadata: Mapping[str, Any], extras: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what a run's recording is not the one that an index was made for.

    Args:
        metadata: What the recording says of itself.
        extras: What the file that belongs to the index says.
    """
    number = metadata.get("run")
    expected = [run for run in extras.get("runs", []) if run["index"] == number]
    if not expected:
        yield f"it is of run {number!r}, which the index has not"
        return
    ours = said_of_run(metadata, expected[0]["index"])
    theirs = {**expected[0], "columns": said_columns(extras, expected[0])}
    if not (theirs["columns"] and "columns" in ours):  # one of them is of schema 1
        ours, theirs = ({**one, "columns": {}} for one in (ours, theirs))
    for key, got, wanted in differences(ours, theirs):
        is_short = not isinstance(got, (dict, list)) and not isinstance(wanted, (dict, list))
        yield f"its {key} is {got!r}, expected {wanted!r}" if is_short else f"its {key} is another"
    swept = ours.get("swept") or {}
    here, there = (decisive(one.get("config") or {}, without=swept) for one in (metadata, extras))
    for key, got, wanted in differences(here, there):
        yield f"its {key} is {got!r}, expected {wanted!r}"
