"""What belongs in a gathered recording: the experiment's record, its finished shards, scalars and masks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.experiment import ExperimentPaths, Run
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.formats.columns import run_prefix, share_columns, with_columns
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.formats.metadata import dump_metadata
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.safetensors.layout import FileLayout, read_layout
from flannel_pl.recording.formats.schema import (
    CONFIG_SCALARS,
    KNOWN_SCHEMAS,
    SCHEMA_VERSION,
    experiment_tensors_of,
    static_checksum,
)
from flannel_pl.recording.gathering.membership import said_of_run
from flannel_pl.recording.masks import mask_problems, read_masks
from flannel_pl.recording.sameness import decisive, differences, has_own_data

Extras = dict[str, Array]
"""The experiment-wide tensors of a gathered recording, by key."""


@dataclass(frozen=True)
class Shard:
    """One run's finished recording."""

    index: int
    """Number of the run."""

    path: Path
    layout: FileLayout

    @property
    def prefix(self) -> str:
        """What the run's keys begin with in the gathered recording."""
        return run_prefix(self.index)

    @property
    def keys(self) -> dict[str, str]:
        """Key in the gathered recording -> key in the shard."""
        return {key if key.startswith(self.prefix) else self.prefix + key: key for key in self.layout.tensors}


def read_shard(paths: ExperimentPaths, record: ExperimentRecord, index: int) -> Shard:
    """Returns the finished recording of run `index`.

    Raises:
        RunError: If it is not there, is damaged, or belongs to another experiment.
    """
    path = paths.run(index).recording
    shard = Shard(index, path, read_layout(path))
    refuse_foreign(path, contradictions(shard.layout.flannel, record, index), paths)
    return shard


def refuse_foreign_shard(paths: ExperimentPaths, record: ExperimentRecord, index: int) -> None:
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


def refuse_foreign(path: Path, wrong: Iterable[str], paths: ExperimentPaths) -> None:
    """Refuses a recording that contradicts its experiment.

    Raises:
        RunError: If it does in anything.
    """
    if sentences := list(wrong):
        raise RunError(f"{path} {not_belonging(sentences, paths)}")


def not_belonging(wrong: Sequence[str], paths: ExperimentPaths) -> str:
    """Returns what is said of a file that contradicts its experiment, and what to do."""
    return (
        f"does not belong to this experiment: {'; '.join(wrong)}. Either it or {paths.record.name} was "
        "brought from elsewhere: bring back the one that belongs here."
    )


def contradictions(metadata: Mapping[str, Any], record: ExperimentRecord, index: int) -> Iterator[str]:
    """Yields in what a shard's metadata contradict the experiment that it is to be part of.

    Args:
        metadata: What the shard says of itself.
        record: The experiment's record.
        index: Number of the run that the shard should be of.
    """
    run = record.runs[index]
    digests = {} if has_own_data(run.swept) else record.data_digests
    yield from run_contradictions(metadata, run, config=record.config, digests=digests)


def copy_contradictions(metadata: Mapping[str, Any], record: ExperimentRecord, index: int) -> Iterator[str]:
    """Yields in what a run's entry in a gathered file, or in its notes, contradicts the experiment.

    Args:
        metadata: The `run_metadata` of the run.
        record: The experiment's record.
        index: Number of the run that it should be.
    """
    shared = {"run": index, "schema": SCHEMA_VERSION, "config": record.config}
    yield from contradictions({**metadata, **shared}, record, index)


def run_contradictions(
    metadata: Mapping[str, Any], run: Run, *, config: Mapping[str, Any], digests: Mapping[str, str]
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


def experiment_tensors(paths: ExperimentPaths, record: ExperimentRecord) -> Extras:
    """Returns the notebook's ten scalars, the seeds and the masks, as far as the experiment has them.

    A scalar whose config key was swept is NaN (`n_steps`: -1), since no one number is true of all runs.

    Raises:
        RunError: If the masks are missing, damaged, or not those that the runs were trained with.
    """
    if not record.has_tokens:
        return derived_tensors(record, {})
    if not is_there(paths.masks):
        raise RunError(
            f"{paths.masks} is missing; copy the masks the experiment was trained with there, then gather."
        )
    masks = read_masks(paths.masks)
    if wrong := list(mask_problems(masks, record.data_digests.get("masks"))):
        raise RunError(
            f"{paths.masks} is damaged: {'; '.join(wrong)}. Bring it back from where the experiment's masks "
            "came from, then gather."
        )
    return derived_tensors(record, masks)


def derived_tensors(record: ExperimentRecord, masks: Mapping[str, Array]) -> Extras:
    """Returns what `experiment_tensors` does.

    Args:
        record: The experiment's record.
        masks: The five tensors of its masks file; none where it has no tokens.
    """
    seeds = [run.seed for run in record.runs]
    integers = {"n_runs": len(seeds), "base_seed": seeds[0]}
    if masks:
        integers |= {f"n_{name}": int(masks[f"{name}_mask"].sum()) for name in ("live", "dead")}
    there = experiment_tensors_of(record.config, record.data_digests)
    found = {name: record.common(key) for name, key in CONFIG_SCALARS.items() if name in there}
    numbers = {name: value if type(value) in (int, float) else None for name, value in found.items()}
    integers["n_steps"] = -1 if (steps := numbers.pop("n_steps")) is None else steps
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{
            name: np.array(x if type(x) in (int, float) else np.nan, np.float32)
            for name, x in numbers.items()
        },
        "seeds": np.array(seeds, np.int64),
        **masks,
    }


def run_metadata(shard: Shard) -> dict[str, Any]:
    """Returns what a gathered recording says of one run: the shard's own metadata, but for what is shared."""
    specs = {key.removeprefix(shard.prefix): shard.layout.tensors[inner] for key, inner in shard.keys.items()}
    return said_of_run(with_columns(shard.layout.flannel, specs), shard.index)


def gathered_metadata(
    record: ExperimentRecord, runs: Sequence[Mapping[str, Any]], extras: Mapping[str, Array]
) -> str:
    """Returns the metadata string of a gathered recording.

    Args:
        record: The experiment's record.
        runs: Of each run in turn its `run_metadata`.
        extras: The experiment's tensors.
    """
    columns, sayings = share_columns(runs)
    return dump_metadata(
        {
            "schema": SCHEMA_VERSION,
            "name": record.content["name"],
            "config": record.content["config"],
            "provenance": record.provenance,
            "columns": columns,
            "runs": sayings,
            "static_checksums": {name: static_checksum(array) for name, array in extras.items()},
        }
    )


def gathered_contradictions(metadata: Mapping[str, Any], record: ExperimentRecord) -> Iterator[str]:
    """Yields in what a gathered recording's metadata contradict the experiment that it is to be of."""
    if not has_runs(metadata, record):
        yield "its runs are not those of experiment.json"
    yield from other_config(metadata, record.config, swept=record.swept_keys)
    if not has_own_data(record.swept_keys):
        for run in metadata.get("runs", []):
            for sentence in other_data(run.get("provenance", {}), record.data_digests):
                yield f"run {run['index']}: {sentence}"


def has_runs(metadata: Mapping[str, Any], record: ExperimentRecord) -> bool:
    """Tells whether a gathered recording names just the runs of an experiment."""
    runs = metadata.get("runs", [])
    there = [{"index": run["index"], "seed": run.get("seed"), "swept": run.get("swept")} for run in runs]
    return there == record.run_entries
