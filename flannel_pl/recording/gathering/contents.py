"""What a gathered recording is made of: finished shards, and what it says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_pl.arrays import Array
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.belonging import contradictions, refuse_foreign, said_of_run
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.formats.columns import run_prefix, share_columns, with_columns
from flannel_pl.recording.formats.metadata import dump_metadata
from flannel_pl.recording.formats.safetensors.layout import FileLayout, read_layout
from flannel_pl.recording.formats.schema import (
    SCHEMA_VERSION,
    static_checksum,
)


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
