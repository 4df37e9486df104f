import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.numpy

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.safetensors.layout import FILLER
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import (
    make_entry,
    make_experiment,
    make_schema,
    make_writer,
    run_metadata,
    write_rows,
)

Tensors = dict[str, bytes]


def tensors_of(paths: ExperimentPaths) -> Tensors:
    """Returns what the gathered file has to hold, from the shards."""
    tensors = {}
    for run in json.loads(paths.record.read_text())["runs"]:
        for key, array in safetensors.numpy.load_file(paths.run(run["index"]).recording).items():
            if not key.startswith(FILLER):
                tensors[f"run_{run['index']}_{key}"] = array.tobytes()
    return tensors


def assert_gathered(paths: ExperimentPaths, expected: Tensors, *, shards: int) -> None:
    """The gathered file is complete and right, and nothing else is left of gathering."""
    gathered = safetensors.numpy.load_file(paths.gathered)
    assert {key: gathered[key].tobytes() for key in expected} == expected
    assert verify(paths.folder).ok
    files = {path.name for path in paths.folder.iterdir() if path.is_file()}
    assert files == {"experiment.json", f"{paths.name}.safetensors", "live_dead_tokens.safetensors"}
    assert len(list(paths.folder.glob("run_*/recording.safetensors"))) == shards
    with open_recording(paths.folder) as recording:
        assert len(recording) == len(json.loads(paths.record.read_text())["runs"])
        for run in recording:
            assert run.grads[:].tobytes() == expected[f"run_{run.index}_grads"]


def experiment(folder: Path, *, keep_shards: bool = False, num_runs: int = 3) -> ExperimentPaths:
    paths = make_experiment(folder, num_runs=num_runs)
    change_config(paths, keep_shards=keep_shards)
    return paths


def change_config(paths: ExperimentPaths, **changes: Any) -> None:
    record = json.loads(paths.record.read_text())
    record["config"]["experiment"] |= changes
    paths.record.write_text(json.dumps(record))


def hide(paths: ExperimentPaths, *runs: int) -> None:
    """Makes runs unfinished."""
    for run in runs:
        paths.run(run).folder.rename(paths.folder.parent / f"hidden_{run}")


def bring_back(paths: ExperimentPaths, run: int) -> None:
    (paths.folder.parent / f"hidden_{run}").rename(paths.run(run).folder)


def make_run(
    paths: ExperimentPaths, index: int, *, ends_at: int | None = None, **schema_changes: Any
) -> None:
    record = json.loads(paths.record.read_text())
    run = record["runs"][index]
    shutil.rmtree(paths.run(index).folder, ignore_errors=True)
    schema = make_schema(**schema_changes)
    writer = make_writer(
        paths.run(index).folder,
        schema=schema,
        metadata=run_metadata(record, run),
        journal_entry=make_entry(index),
    )
    num_rows = schema.num_rows if ends_at is None else 1 + ends_at
    write_rows(writer, range(num_rows), seed=run["seed"])
    planned = schema.num_rows - 1
    writer.finish(None if ends_at is None else EarlyEnd(ends_at, planned, "enough"))
