"""The experiment's folder: what is written there before the first run, and what is found there again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flannel_pl import provenance
from flannel_pl.errors import UserError
from flannel_pl.experiment import Experiment, Run, Slot


def unfinished_runs(experiment: Experiment) -> list[Run]:
    """Returns the selected runs that have no finished shard yet; all of them in a new folder.

    Raises:
        UserError: If the folder holds another experiment, or something that is none.
    """
    paths = experiment.paths
    if paths.record.exists():
        try:
            difference = experiment.difference(json.loads(paths.record.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{paths.record} cannot be read ({error}); move {paths.folder} away") from error
        if difference:
            raise UserError(
                f"{paths.folder} holds an experiment with another config, and nothing is overwritten. "
                f"Different: {'; '.join(difference)}. Choose another --experiment.name, or repeat the config "
                "of that folder"
            )
    elif paths.folder.exists() and any(path.suffix != ".partial" for path in paths.folder.iterdir()):
        raise UserError(
            f"{paths.folder} has files in it but no {paths.record.name}, so it is no experiment of ours and "
            "nothing is written there; choose another --experiment.name or --experiment.output_dir"
        )
    return [run for run in experiment.selected if not paths.run(run.index).recording.exists()]


def check_writable(folder: Path) -> None:
    """Makes `folder` and refuses it if no file can be made in it.

    Raises:
        UserError: If the folder cannot be made or written.
    """
    probe = folder / f".write-probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --experiment.output_dir, or change "
            "its permissions"
        ) from error


def write_folder(
    experiment: Experiment, *, save_masks: Callable[[Path], object], data_digests: dict[str, str]
) -> None:
    """Writes what describes the experiment, unless it is there already: experiment.json and the masks.

    Args:
        experiment: The experiment.
        save_masks: Writes the live/dead masks file to the path it is given.
        data_digests: Name of each data file -> hash of its content.
    """
    paths = experiment.paths
    check_writable(paths.folder)
    if not paths.record.exists():
        record = experiment.record({**provenance.collect(), "data": data_digests})
        _write_text(paths.record, json.dumps(record, indent=1, sort_keys=True) + "\n")
    if not paths.masks.exists():
        temporary = paths.masks.with_suffix(".partial")
        save_masks(temporary)
        temporary.replace(paths.masks)


def write_run_config(
    experiment: Experiment, run: Run, slot: Slot, *, to_yaml: Callable[[dict[str, Any]], str]
) -> None:
    """Writes the complete config of one run.

    Args:
        experiment: The experiment.
        run: The run.
        slot: Where the run is trained: one device. Its number of threads is part of the config, because bits
            depend on it.
        to_yaml: Turns a config into the YAML text that `fit --config` reads.
    """
    config = experiment.run_config(run)
    config["trainer"] |= {"accelerator": slot.accelerator, "devices": 1}
    config["launch"] |= {"devices": "auto", "runs_per_device": 1, "threads_per_run": slot.threads}
    path = experiment.paths.run(run.index).config
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, to_yaml(config))


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
