"""Whether a folder's experiment is the one that is asked for: what decides bits, and what differs."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from flannel_pl.config import ExperimentConfig
from flannel_pl.experiment import ResolvedExperiment, Run, parse_seeds
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.sameness import as_read, decisive, differences, has_own_data
from flannel_pl.texts import for_file


def config_changes(experiment: ResolvedExperiment, record: ExperimentRecord) -> list[str]:
    """Names what in an experiment's config is not as in the recorded one's.

    Args:
        experiment: What is asked for.
        record: What the folder's `experiment.json` says.

    Returns:
        One line per difference; empty if the experiment may go on in that folder.
    """
    ours, theirs = _settings(experiment.config.experiment), _settings(record.settings.experiment)
    # The config of a single run has that run's value where a key is swept.
    swept = {*ours["experiment.sweep"], *theirs["experiment.sweep"]}
    ours |= decisive(experiment.config.content, without=swept)
    theirs |= decisive(record.config, without=swept)
    changes = [
        f"{key}: {json.dumps(there)} there, {json.dumps(now)} now"
        for key, there, now in differences(theirs, ours)
    ]
    return changes or list(_other_runs(experiment, record))


def data_changes(
    experiment: ResolvedExperiment, record: ExperimentRecord, digests: Mapping[str, str]
) -> list[str]:
    """Names the data files whose content is no longer that of the recorded experiment.

    Args:
        experiment: What is asked for.
        record: What the folder's `experiment.json` says.
        digests: Name of each data file -> hash of its content now.
    """
    if has_own_data(experiment.config.experiment.sweep):
        return []  # every run has its own; each recording has the hashes of what it was trained on
    theirs = record.data_digests
    return [
        f"content of the {name}: {theirs.get(name)} there, {digest} now"
        for name, digest in digests.items()
        if theirs.get(name, digest) != digest  # an older record has fewer hashes
    ]


def settled_changes(record: ExperimentRecord, settled: Mapping[str, Any]) -> list[str]:
    """Names the settled values (accelerator, threads) that differ from the recorded experiment's."""
    theirs = record.settled
    return [
        f"{key}: {theirs.get(key)} there, {value} now"
        for key, value in settled.items()
        if theirs.get(key) != value
    ]


def _settings(settings: ExperimentConfig) -> dict[str, Any]:
    """Returns which runs an experiment has, and what becomes of their files."""
    return {
        "experiment.seeds": parse_seeds(settings.seeds),
        "experiment.sweep": {
            key: list(map(as_read, values)) if isinstance(values, list) else values
            for key, values in settings.sweep.items()
        },
        # The keys in the runs' files depend on it, see gathering/gather.py; single and none have the same.
        "experiment.gather": "index" if settings.gather == "index" else "single",
        # Whether files are deleted is not changed by the way.
        "experiment.keep_shards": settings.keep_shards,
    }


def _other_runs(experiment: ResolvedExperiment, record: ExperimentRecord) -> Iterator[str]:
    """Yields the first run that is another, e.g. because the keys of the sweep come in another order."""
    runs = [Run(run.index, run.seed, for_file(run.swept)) for run in experiment.runs]
    for theirs, ours in zip(record.runs, runs, strict=False):
        if _as_read(theirs) != _as_read(ours):
            there, now = (f"seed {run.seed}, {json.dumps(run.swept)}" for run in (theirs, ours))
            yield f"run {ours.index}: {there} there, {now} now"
            return
    if len(record.runs) != len(experiment.runs):
        yield f"number of runs: {len(record.runs)} there, {len(experiment.runs)} now"


def _as_read(run: Run) -> Run:
    return dataclasses.replace(run, swept={key: as_read(value) for key, value in run.swept.items()})
