"""Which files a recording is made of: a shard, a gathered file, those of an index, or those in a folder."""

import json
import os
from pathlib import Path

from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import ExperimentPaths, RunPaths, is_index, is_partial, run_folders
from flannel_pl.recording.begun import how_it_goes_on, is_from_python
from flannel_pl.recording.formats.files import is_recording
from flannel_pl.recording.formats.opening import ANOTHER_KIND, unreachable
from flannel_pl.small_files import read_small
from flannel_pl.texts import from_file


def files_of(path: Path) -> list[tuple[Path, list[str] | None]]:
    """Returns the safetensors files that make up a recording, each with its keys (None: all)."""
    if path.is_dir() and not is_recording(path):
        return _files_of_folder(path)
    if is_partial(path):
        raise UserError(
            f"{path} is not finished: rows not written yet read as zeros; {how_it_goes_on(path)}. "
            f"flannel-pl {'verify' if is_from_python(path) else 'status'} shows how far it is."
        )
    if not path.exists():
        raise UserError(f"There is no {path}; expected a recording (.safetensors), an index, or a folder")
    if is_index(path):
        return _files_of_index(path)
    return [(path, None)]


def _files_of_folder(folder: Path) -> list[tuple[Path, list[str] | None]]:
    run, experiment = RunPaths(folder), ExperimentPaths.find(folder.absolute())
    for candidate in (run.recording, experiment.gathered, experiment.index):
        if candidate.exists():
            return files_of(candidate)
    shards = _in_runs(folder, run.recording.name)
    if not shards:
        begun = [path for path in (run.partial, experiment.growing) if path.exists()]
        begun += _in_runs(folder, run.partial.name)
        hint = f"; {begun[0]} is begun but not finished" if begun else ""
        if run.partial in begun and is_from_python(run.partial):
            raise UserError(f"{folder} holds no finished recording{hint}; {how_it_goes_on(run.partial)}.")
        raise UserError(f"{folder} holds no finished recording{hint}. flannel-pl fit makes or finishes one.")
    return [(shard, None) for shard in (*shards, experiment.masks) if os.path.lexists(shard)]


def _in_runs(folder: Path, name: str) -> list[Path]:
    """Returns the files of a name in the folders of all runs, also those behind a link that leads nowhere."""
    return [path for run in run_folders(folder) if os.path.lexists(path := run.folder / name)]


def _files_of_index(path: Path) -> list[tuple[Path, list[str] | None]]:
    try:
        weight_map = from_file(json.loads(read_small(path))["weight_map"])
        keys_of: dict[str, list[str]] = {}
        for key, name in weight_map.items():
            keys_of.setdefault(os.fspath(name), []).append(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in ANOTHER_KIND:
            raise unreachable(path, error) from error
        raise RunError(f"{path} is no readable index: {error!r}. Gather again with --mode index.") from error
    return [(path.parent / name, keys) for name, keys in keys_of.items()]
