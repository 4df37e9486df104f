"""One run's tensors in one file: which they are, and what the file says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flannel_pl.recording.formats.columns import run_prefix, said_columns
from flannel_pl.recording.formats.files import Header

REQUIRED = ("num_rows", "every_n_steps", "checksum_columns", "static_checksums")
"""What the metadata must say of a run before it can be checked."""


@dataclass(frozen=True)
class RunPart:
    """One run's tensors in one file."""

    run: int | None
    prefix: str
    """What their keys begin with: nothing, or run_3_."""

    metadata: Mapping[str, Any]
    """What the file says of this run: at least `REQUIRED`, once `problems` has found none."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The config that the file says it was recorded with, by group; of a gathered file that of all runs."""

    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> what the file says of each column; empty in one of schema 1."""

    @property
    def is_of_own_class(self) -> bool:
        """Whether the config names the model's class, of whose arguments nobody knows what they mean."""
        return "class_path" in self.config.get("model", {})

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.metadata["num_rows"])

    def key(self, name: str) -> str:
        """Returns the key of the tensor `name` in the file."""
        return self.prefix + name

    def said(self, key: str) -> Any:
        """Returns this run's value of a config key such as recorder.tokens; None if the file does not say."""
        group, name = key.split(".")
        return self.metadata.get("swept", {}).get(key, self.config.get(group, {}).get(name))

    def step(self, row: int) -> int:
        """Returns the step that `row` belongs to."""
        return row * int(self.metadata["every_n_steps"])


def parts_of(header: Header) -> list[RunPart]:
    """Returns the runs that a file's metadata list: one for a shard, several for a gathered file."""
    metadata = header.flannel
    config = metadata.get("config", {})
    if "runs" in metadata:
        return [
            RunPart(run["index"], run_prefix(run["index"]), run, config, said_columns(metadata, run))
            for run in metadata["runs"]
        ]
    prefix = run_prefix(metadata.get("run"))
    prefix = prefix if f"{prefix}checksums" in header.tensors else ""
    return [RunPart(metadata.get("run"), prefix, metadata, config, said_columns(metadata, metadata))]


def num_bytes_of(header: Header, part: RunPart) -> int:
    """Returns the size of a run's tensors."""
    names = (*part.metadata["checksum_columns"], "checksums")
    return sum(header.tensors[part.key(name)].num_bytes for name in names)
