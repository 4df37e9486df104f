"""Small recordings for the tests of this folder, made by the real writer."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.metadata import CHECKSUM_KEY, dump_metadata
from flannel_pl.recording.formats.safetensors.layout import plan_layout, read_layout
from flannel_pl.recording.formats.schema import RECORDABLE, RecordingSchema
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.recording.writing.ring import RowBuffer
from flannel_pl.recording.writing.writer import RecordingWriter
from tests.schemas import build_schema

NUM_TOKENS, HIDDEN_DIM, MAX_STEPS = 30, 4, 6


def make_schema(**changes: Any) -> RecordingSchema:
    arguments: dict[str, Any] = {
        "tensors": RECORDABLE,
        "dtypes": {},
        "num_tokens": NUM_TOKENS,
        "hidden_dim": HIDDEN_DIM,
        "max_steps": MAX_STEPS,
        "every_n_steps": 1,
    }
    return build_schema(**(arguments | changes))


def make_entry(run: int = 0, seed: int | None = 42, **changes: Any) -> JournalEntry:
    fields: dict[str, Any] = {
        **{"run": run, "seed": seed, "swept": {}, "state": "waiting", "attempt": 1, "device": "cpu"},
        **{"host": "here", "pid": 1, "num_rows": 0, "rows_written": 0, "rows_committed": 0, "loss": None},
        **{"bytes_written": 0, "started_s": time.time(), "updated_s": time.time()},
    }
    return JournalEntry(**(fields | changes))


def make_writer(folder: Path, *, schema: RecordingSchema | None = None, **changes: Any) -> RecordingWriter:
    paths = RunPaths(folder)
    arguments: dict[str, Any] = {
        "partial_path": paths.partial,
        "schema": schema or make_schema(),
        "metadata": {"run": 0, "seed": 42, "swept": {}},
        "static": {},
        "journal_entry": make_entry(),
        "journal": Journal(paths.journal),
    }
    return RecordingWriter(paths.recording, **(arguments | changes))


def fill(buffer: RowBuffer, row: int, *, seed: int = 0) -> None:
    """Puts random bits, NaN payloads among them, into every tensor of the buffer."""
    generator = np.random.default_rng([seed, row])
    for data in buffer.row_bytes.values():
        data[:] = generator.bytes(data.nbytes)
    buffer.tensors["recorded_steps"].fill_(row)
    buffer.tensors["losses_f32"].fill_(1.0 / (row + 1))


def write_rows(writer: RecordingWriter, rows: Sequence[int], *, seed: int = 0) -> list[dict[str, bytes]]:
    """Submits filled rows and returns their bytes by column."""
    written = []
    for row in rows:
        buffer = writer.acquire()
        fill(buffer, row, seed=seed)
        written.append({name: bytes(data) for name, data in buffer.row_bytes.items()})
        writer.submit(buffer, row)
    return written


def bits(tensor: Any) -> bytes:
    """Returns the bytes of a numpy array or torch tensor."""
    if isinstance(tensor, torch.Tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.asarray(tensor).tobytes()


def make_experiment(
    folder: Path,
    *,
    num_runs: int = 3,
    gather: str = "single",
    swept: Callable[[int], Mapping[str, Any]] = lambda run: {},
    config: Mapping[str, Mapping[str, Any]] | None = None,
    static: Mapping[str, Any] | None = None,
    more: Callable[[int], Sequence[ColumnSpec]] = lambda run: (),
    **schema_changes: Any,
) -> ExperimentPaths:
    """Records a whole experiment with seeds 42, 43, ...; `config` goes over the samples' own.

    `more` gives the columns that a run has beyond the usual ones.
    """
    changes = config or {}
    paths = ExperimentPaths(folder, folder.name)
    folder.mkdir(parents=True)
    own: dict[str, dict[str, Any]] = {
        "experiment": {"gather": gather},
        "trainer": {"max_steps": schema_changes.get("max_steps", MAX_STEPS), "precision": "bf16-mixed"},
        "model": {
            **{"init_scale": 0.02, "learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta1": 0.9},
            **{"adam_beta2": 0.999, "param_dtype": "bfloat16"},
        },
        "data": {"batch_size": 32, "corpus_path": "here.txt"},
        "recorder": {"every_n_steps": schema_changes.get("every_n_steps", 1)},
    }
    config = {group: keys | dict(changes.get(group, {})) for group, keys in own.items()}
    runs: list[dict[str, Any]] = [
        {"index": i, "seed": 42 + i, "swept": dict(swept(i))} for i in range(num_runs)
    ]
    provenance = {"git": {"commit": "abc", "dirty": False}, "torch": "2.13", "data": {"corpus": "abc" * 20}}
    record = {"schema": 1, "name": folder.name, "config": config, "runs": runs, "provenance": provenance}
    paths.record.write_text(json.dumps(record))
    live = np.arange(NUM_TOKENS) % 3 > 0
    masks = {"live_mask": live, "dead_mask": ~live, "token_occurrence_counts": live * np.int64(5)}
    masks |= {"live_indices": np.flatnonzero(live), "dead_indices": np.flatnonzero(~live)}
    save_file(masks, paths.masks)
    for run in runs:
        prefix = f"run_{run['index']}_" if gather == "index" else ""
        metadata = run_metadata(record, run)
        max_steps = run["swept"].get("trainer.max_steps", config["trainer"]["max_steps"])
        schema = make_schema(key_prefix=prefix, **(schema_changes | {"max_steps": max_steps}))
        schema = dataclasses.replace(schema, columns=(*schema.columns, *more(run["index"])))
        run_folder, entry = paths.run(run["index"]).folder, make_entry(run["index"])
        writer = make_writer(
            run_folder, schema=schema, metadata=metadata, journal_entry=entry, static=dict(static or {})
        )
        write_rows(writer, range(schema.num_rows), seed=run["seed"])
        writer.finish()
    return paths


def run_metadata(record: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run on another machine, with other paths, writes into its shard."""
    config = record["config"] | {"data": record["config"]["data"] | {"corpus_path": "there.txt"}}
    return {
        **{"run": run["index"], "seed": run["seed"], "swept": run["swept"]},
        **{"config": config, "provenance": record["provenance"]},
    }


def make_old(partial: Path, environment: Mapping[str, Any], *, slack_bytes: int | None = None) -> None:
    """Makes an unfinished file one as they were before: of one environment, and with no room to say more.

    Args:
        partial: The file.
        environment: What stands under `provenance`, besides the hashes of the data.
        slack_bytes: Spaces at the end of the header; None = as it comes.
    """
    there = read_layout(partial)
    said = {key: value for key, value in there.flannel.items() if key not in ("attempts", CHECKSUM_KEY)}
    said["provenance"] = {"data": {"corpus": "abc"}, **said.get("provenance", {}), **environment}
    layout = plan_layout(there.tensors, metadata=dump_metadata(said))
    while slack_bytes not in (None, len(layout.header) - len(layout.header.rstrip())):
        said["provenance"]["platform"] = said["provenance"].get("platform", "") + "x"
        layout = plan_layout(there.tensors, metadata=dump_metadata(said))
    content = partial.read_bytes()
    partial.write_bytes(layout.header + content[len(there.header) :])


def journal_of(folder: Path) -> JournalEntry:
    entry = Journal(RunPaths(folder).journal).read()
    assert entry is not None
    return entry
