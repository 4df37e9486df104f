"""What is known of a gathered file while it grows: its plan, and which runs are safe in it.

It is kept in a small file beside the growing one, replaced after every run. A run's own recording may be
deleted once it stands here, so this says everything that the header will need.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.experiment_tensors import Extras
from flannel_pl.recording.formats.columns import run_prefix, with_columns
from flannel_pl.recording.formats.metadata import check_metadata
from flannel_pl.recording.formats.opening import unreachable
from flannel_pl.recording.formats.safetensors.layout import PAGE_BYTES, FileLayout, is_readable, plan_layout
from flannel_pl.recording.formats.safetensors.shard import is_shortened
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec
from flannel_pl.recording.gathering.contents import Shard, gathered_metadata, run_metadata
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.small_files import read_small

Specs = dict[str, TensorSpec]
"""Tensors of one run: name without prefix -> dtype and shape."""

SPARE_BYTES_PER_RUN = PAGE_BYTES
"""Room in the header for what an unfinished run may say of itself beyond what a finished one says."""


@dataclass
class GatherNotes:
    """Where everything lies in the growing file, and which runs are safe in it."""

    header_bytes: int
    """Room for the header, which cannot be written before the last run is there."""

    specs: list[Specs]
    """Of each run, in their order; for a run not finished at the time, what was expected of it."""

    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Number of each run that is copied, synced and checked -> what the header will say of it."""

    def write(self, path: Path) -> None:
        """Replaces the notes in `path`, durably.

        Raises:
            RunError: If the disk fails.
        """
        # Most runs have the same tensors, so those are written once.
        kinds: list[Specs] = []
        for specs in self.specs:
            if specs not in kinds:
                kinds.append(specs)
        body = {
            "header_bytes": self.header_bytes,
            "kinds": [{name: [s.dtype, list(s.shape)] for name, s in kind.items()} for kind in kinds],
            "kind_of_run": [kinds.index(specs) for specs in self.specs],
            "runs": {str(index): metadata for index, metadata in self.runs.items()},
        }
        text = json.dumps(body, sort_keys=True).encode()
        write_file(path, xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n")

    @classmethod
    def read(cls, path: Path) -> "GatherNotes | None":
        """Returns the notes in `path`; None if there are none.

        Raises:
            Unreachable: If they cannot be read.
            RunError: If they are damaged, or of another version.
        """
        try:
            content = read_small(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreachable(path, error) from error
        checksum, text = content[:16], content[17:-1]
        whole = checksum + b" " + text + b"\n" == content
        if not whole or xxhash.xxh3_64_hexdigest(text).encode() != checksum:
            raise RunError(f"{path} is damaged: it is not as its checksum says")
        try:
            body = json.loads(text)
            kinds = [
                {name: TensorSpec(dtype, tuple(shape)) for name, (dtype, shape) in kind.items()}
                for kind in body["kinds"]
            ]
            runs = {int(index): metadata for index, metadata in body["runs"].items()}
            notes = cls(body["header_bytes"], [kinds[kind] for kind in body["kind_of_run"]], runs)
            notes._check()
            notes.runs = {index: with_columns(one, notes.taken(index)) for index, one in runs.items()}
            return notes
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is not as this version of flannel-pl writes it ({error!r})") from error

    def _check(self) -> None:
        """Raises ValueError, or TypeError, for what would make no layout."""
        sizes = [size for specs in self.specs for spec in specs.values() for size in spec.shape]
        if not all(type(size) is int and 0 <= size < 2**63 for size in (self.header_bytes, *sizes)):
            raise ValueError("a size that is none")
        if any(spec.dtype not in NUMPY_DTYPES for specs in self.specs for spec in specs.values()):
            raise ValueError("a dtype that is none")
        for index, metadata in self.runs.items():
            check_metadata(metadata)
            rows, columns, specs = metadata["num_rows"], metadata["checksum_columns"], self.taken(index)
            _ = metadata["every_n_steps"], [specs[name] for name in metadata["static_checksums"]]
            is_right = (
                index >= 0
                and is_shortened(specs, self.specs[index])
                and specs["recorded_steps"] == TensorSpec("I64", (rows,))
                and specs["checksums"] == TensorSpec("U64", (rows, len(columns)))
                and all(specs[name].shape[:1] == (rows,) for name in columns)
            )
            if not is_right:
                raise ValueError(f"a run {index} that is none")

    def taken(self, index: int) -> Specs:
        """Returns what a run has of the space that is planned for it: fewer rows, if it ended early."""
        metadata, planned = self.runs.get(index), self.specs[index]
        if metadata is None:
            return planned
        rows = {*metadata["checksum_columns"], "recorded_steps", "checksums"}
        return {
            name: TensorSpec(spec.dtype, (metadata["num_rows"], *spec.shape[1:])) if name in rows else spec
            for name, spec in planned.items()
        }

    def layout(self, extras: Extras, *, taken: bool = False) -> FileLayout:
        """Returns where everything lies in the growing file; the header is not the true one yet.

        Args:
            extras: The experiment's tensors.
            taken: Whether tensors are as long as what the runs have of them, not as what is planned.
        """
        planned = _keys(self.specs, extras)
        specs = [self.taken(index) if taken else one for index, one in enumerate(self.specs)]
        return plan_layout(
            _keys(specs, extras), metadata="", min_header_bytes=self.header_bytes, reserved=planned
        )


def plan_notes(record: ExperimentRecord, extras: Extras, shards: Sequence[Shard]) -> GatherNotes:
    """Plans the gathered file by the runs that are finished.

    Args:
        record: The experiment's record.
        extras: Its tensors.
        shards: At least one finished run. All others are expected to be like the first.

    Raises:
        UserError: If there are more runs than one file can have.
    """
    known = {shard.index: shard for shard in shards}
    likely = [known.get(run.index, shards[0]) for run in record.runs]
    specs = [specs_of(shard) for shard in likely]
    for run in record.runs:
        if run.index not in known:
            specs[run.index] = _planned_specs(shards[0], record.num_rows(run))
    metadata = gathered_metadata(record, [run_metadata(shard) for shard in likely], extras)
    exact = plan_layout(_keys(specs, extras), metadata=metadata)
    header_bytes = len(exact.header) + SPARE_BYTES_PER_RUN * (len(likely) - len(known))
    _refuse_long_header(exact, record)
    return GatherNotes(header_bytes, specs)


def final_layout(
    notes: GatherNotes, record: ExperimentRecord, extras: Extras, *, apart: Mapping[int, Shard]
) -> FileLayout:
    """Returns the layout with its true header, once every run is there.

    Args:
        notes: The plan, and every run but those `apart`.
        record: The experiment's record.
        extras: Its tensors.
        apart: Runs that do not fit the plan. If there are any, or the header is longer than planned or has
            too many fillers, the layout is another than the planned one.
    """
    specs, sayings = [], []
    for run in record.runs:
        shard = apart.get(run.index)
        specs.append(notes.taken(run.index) if shard is None else specs_of(shard))
        sayings.append(notes.runs[run.index] if shard is None else run_metadata(shard))
    metadata = gathered_metadata(record, sayings, extras)
    keys = _keys(specs, extras)
    if not apart:
        planned = _keys(notes.specs, extras)
        layout = plan_layout(keys, metadata=metadata, min_header_bytes=notes.header_bytes, reserved=planned)
        if len(layout.header) == notes.header_bytes and is_readable(layout):
            return layout
    layout = plan_layout(keys, metadata=metadata)
    _refuse_long_header(layout, record)
    return layout


def _refuse_long_header(layout: FileLayout, record: ExperimentRecord) -> None:
    if not is_readable(layout):
        raise UserError(
            f"{len(record.runs)} runs are too many for one file, whose header no reader would accept. "
            "Gather with --mode index, or split the experiment."
        )


def _planned_specs(like: Shard, num_rows: int) -> Specs:
    """Returns the specs of a run that is like another, and has all the rows that it was to have."""
    rows = {*like.layout.flannel["checksum_columns"], "checksums"}
    return {
        name: TensorSpec(spec.dtype, (num_rows, *spec.shape[1:])) if name in rows else spec
        for name, spec in specs_of(like).items()
    }


def specs_of(shard: Shard) -> Specs:
    """Returns the specs of a shard's tensors, by name without prefix."""
    return {key.removeprefix(shard.prefix): shard.layout.tensors[inner] for key, inner in shard.keys.items()}


def _keys(specs: Sequence[Specs], extras: Extras) -> Specs:
    """Returns key -> dtype and shape of everything in the gathered file."""
    keys = {name: TensorSpec.of(array) for name, array in extras.items()}
    for index, tensors in enumerate(specs):
        keys |= {run_prefix(index) + name: spec for name, spec in tensors.items()}
    return keys
