"""Whether a folder's experiment is the one that is asked for: what decides bits, and what differs."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from flannel_pl.experiment import Experiment, ExperimentConfig, flatten, parse_seeds
from flannel_pl.recording.record import ExperimentRecord

# Trainer keys that change what is shown, logged or used, but no recorded bit.
INCIDENTAL_TRAINER_KEYS = {
    "accelerator",  # what it came to is in the record's `settled`
    "devices",
    "logger",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_checkpointing",
    "log_every_n_steps",
    "profiler",
}


_DEFAULTS = dataclasses.asdict(ExperimentConfig())


def config_changes(experiment: Experiment, record: ExperimentRecord) -> list[str]:
    """Names what in an experiment's config would give other bits than the recorded one's.

    Args:
        experiment: What is asked for.
        record: What the folder's `experiment.json` says.

    Returns:
        One line per differing key; empty if the experiment may go on in that folder.
    """
    ours, theirs = _science(experiment.config), _science(record.config)
    return [
        f"{key}: {json.dumps(theirs.get(key))} there, {json.dumps(ours.get(key))} now"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def data_changes(experiment: Experiment, record: ExperimentRecord, digests: Mapping[str, str]) -> list[str]:
    """Names the data files whose content is no longer that of the recorded experiment.

    Args:
        experiment: What is asked for.
        record: What the folder's `experiment.json` says.
        digests: Name of each data file -> hash of its content now.
    """
    if any(key.startswith("data.") for key in experiment.config["experiment"]["sweep"]):
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


def _science(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns by dotted key what of a config decides the bits of the recordings and which runs there are."""
    settings = {**_DEFAULTS, **config["experiment"]}
    experiment = {"seeds": parse_seeds(settings["seeds"]), "sweep": settings["sweep"]}
    # The keys in the runs' files depend on it, see recording/gather.py; single and none have the same.
    experiment["gather"] = "index" if settings["gather"] == "index" else "single"
    trainer = {key: value for key, value in config["trainer"].items() if key not in INCIDENTAL_TRAINER_KEYS}
    # Of the data files the content counts, not where they lie: see `data_changes`.
    data = {key: value for key, value in config["data"].items() if not key.endswith("_path")}
    groups = {key: config[key] for key in ("model", "recorder")}
    science = dict(flatten({"experiment": experiment, "trainer": trainer, "data": data, **groups}))
    # The config of a single run has that run's value there.
    return {key: value for key, value in science.items() if key not in settings["sweep"]}
