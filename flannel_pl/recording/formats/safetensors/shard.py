"""The file of one run before it has its final name: making it, reopening it, and writing its header anew.

The header is there before the first row and changes later: a further attempt goes on in another environment,
or the run ends early and fewer rows are there than were planned.
A crash in the middle of that must cost no row, so a copy of the new header is made safe beside the file
first; whoever reads a file whose header is torn takes the copy (see `read_layout`). Where the new header does
not fit into the space of the old one, the rows are copied into a file with more space, which then takes the
other's place.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flannel_pl.dotted import flatten
from flannel_pl.errors import RunError
from flannel_pl.paths import header_copy_of, roomier_of
from flannel_pl.publish import sync
from flannel_pl.recording.formats.attempts import with_attempt
from flannel_pl.recording.formats.columns import NOTEBOOK
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.metadata import CHECKSUM_KEY, dump_metadata, short
from flannel_pl.recording.formats.safetensors.layout import (
    SPARE_HEADER_BYTES,
    FileLayout,
    plan_layout,
    read_layout,
)
from flannel_pl.recording.formats.schema import RecordingSchema, ShardPlan
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.writing.disk import (
    copy_range,
    create,
    publish,
    write_at,
    write_file,
)
from flannel_pl.recording.writing.space import give_back, preallocate

_MAX_NAMED = 3
"""How many differences a message names."""

_OF_ATTEMPTS = frozenset({"attempts", "ended", CHECKSUM_KEY})
"""What of the metadata is another one in each attempt."""


def create_shard(plan: ShardPlan) -> tuple[int, FileLayout]:
    """Makes the partial file with its full size, header and static tensors; equal plans give an equal header.

    Returns:
        Its descriptor and its layout.

    Raises:
        OSError: If the disk fails.
        RunError: Likewise.
    """
    path, environment = plan.partial, plan.environment
    attempts = {} if environment is None else {"attempts": with_attempt({}, 0, environment)}
    said = replace(plan, run={**plan.run, **attempts}).metadata
    layout = plan_layout(plan.specs, metadata=said, spare_bytes=SPARE_HEADER_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = create(path)
    try:
        for leftover in (header_copy_of(path), roomier_of(path)):
            leftover.unlink(missing_ok=True)
        _give_size(fd, layout.total_bytes, reserve=plan.reserve)
        write_at(fd, layout.header, 0)
        for name, array in plan.static.items():
            write_at(fd, array.tobytes(), layout.offsets[plan.schema.key_prefix + name])
    except OSError:
        os.close(fd)
        path.unlink()  # holds no row, and may have taken the last of the disk
        raise
    return fd, layout


def reopen_shard(plan: ShardPlan, first_row: int) -> tuple[int, FileLayout]:
    """Opens the partial file of an earlier attempt, and adds this one to what it says of itself.

    Args:
        plan: What it must be, besides its attempts.
        first_row: First row that is made now.

    Returns:
        Its descriptor and its layout.

    Raises:
        OSError: If the disk fails.
        RunError: If it was begun with something else, or its header is damaged.
    """
    path, schema, environment = plan.partial, plan.schema, plan.environment
    fd = os.open(path, os.O_RDWR)
    try:
        there, specs = read_layout(path), plan.specs
        wanted = json.loads(plan.metadata)
        said = {key: value for key, value in there.flannel.items() if key not in ("ended", CHECKSUM_KEY)}
        has_ended = "ended" in there.flannel
        if has_ended:  # but was cut off before it had its name: whoever goes on decides that anew
            said["num_rows"] = schema.num_rows
        differing = [*_differing(_without_words(wanted), _without_words(said))]
        if differing or not (is_shortened(there.tensors, specs) if has_ended else there.tensors == specs):
            differing = differing or [*_differing_tensors(specs, there.tensors)]
            raise RunError(
                f"{path} was begun with other settings or metadata: {_few(differing)}. Repeat what it was "
                "begun with, or choose another experiment.name."
            )
        if environment is not None and first_row < schema.num_rows:
            said["attempts"] = with_attempt(said, first_row, environment)
        layout = plan_layout(specs, metadata=dump_metadata(said), min_header_bytes=len(there.header))
        if (len(layout.header), layout.total_bytes) != (len(there.header), there.total_bytes):
            # Of a file that is mostly holes only what is needed, so that they stay holes.
            rows = {key: _first_rows(spec, first_row) for key, spec in schema.specs().items()}
            kept = None if plan.reserve else rows
            fd, layout = _made_anew(path, fd, there, said, specs, kept=kept, reserve=plan.reserve)
        elif os.pread(fd, len(layout.header), 0) != layout.header:
            rewrite_header(path, fd, layout)
        header_copy_of(path).unlink(missing_ok=True)
    except BaseException:
        os.close(fd)
        raise
    return fd, layout


def _without_words(said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a file says, without the words for the columns that every recording may have."""
    columns = {
        name: column.get("parameter", "") if name in NOTEBOOK else column
        for name, column in said.get("columns", {}).items()
    }
    return {**said, "columns": columns}


def is_shortened(specs: Mapping[str, TensorSpec], planned: Mapping[str, TensorSpec]) -> bool:
    """Tells whether tensors are those that were planned, with as many rows or fewer."""
    return specs.keys() == planned.keys() and all(
        spec.dtype == planned[key].dtype
        and spec.shape[1:] == planned[key].shape[1:]
        and spec.num_bytes <= planned[key].num_bytes
        for key, spec in specs.items()
    )


def rewrite_header(path: Path, fd: int, layout: FileLayout) -> None:
    """Writes a header over that of an unfinished file, which is as long; a crash at any moment costs nothing.

    Args:
        path: The file.
        fd: Its descriptor.
        layout: Its new layout.

    Raises:
        OSError: If the disk fails.
        RunError: Likewise.
    """
    write_file(header_copy_of(path), layout.header)
    write_at(fd, layout.header, 0)
    sync(fd)
    header_copy_of(path).unlink()


def end_early(
    path: Path,
    fd: int,
    there: FileLayout,
    *,
    schema: RecordingSchema,
    ended: EarlyEnd,
    most_copied_bytes: int = 0,
) -> tuple[int, FileLayout]:
    """Makes an unfinished file say that it has fewer rows than were planned, and why; gives the space back.

    Args:
        path: The file.
        fd: Its descriptor; what was written to it is synced.
        there: Its layout.
        schema: The rows and columns that it has by now.
        ended: Why there are no more.
        most_copied_bytes: Up to what size the rows are copied into a file without fillers.

    Returns:
        Its descriptor and its layout, which may be new ones. The header is synced.

    Raises:
        OSError: If the disk fails.
        RunError: Likewise.
    """
    said = {key: value for key, value in there.flannel.items() if key != CHECKSUM_KEY}
    said |= {"num_rows": schema.num_rows, "ended": ended.said}
    if "attempts" in said:
        said["attempts"] = [one for one in said["attempts"] if one["first_row"] < schema.num_rows]
    tensors = there.tensors | schema.specs()
    layout = plan_layout(
        tensors, metadata=dump_metadata(said), min_header_bytes=len(there.header), reserved=there.tensors
    )
    if len(layout.header) > len(there.header) or layout.used_bytes <= most_copied_bytes:
        return _made_anew(path, fd, there, said, tensors)
    rewrite_header(path, fd, layout)
    for start, end in layout.unused:
        give_back(fd, start, end - start)
    return fd, layout


def _made_anew(
    path: Path,
    fd: int,
    there: FileLayout,
    said: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
    *,
    kept: Mapping[str, TensorSpec] | None = None,
    reserve: bool = True,
) -> tuple[int, FileLayout]:
    """Puts a file with other sizes in the place of an open one, which is closed; its header has more space.

    Args:
        path: The file.
        fd: Its descriptor.
        there: Its layout.
        said: What its header is to say.
        tensors: What is to be there of each tensor: all of its rows, or more, or only the first ones.
        kept: What of a tensor is copied, if not all that there is.
        reserve: Whether it has all of its space.

    Returns:
        Descriptor and layout of the new file.
    """
    layout = plan_layout(tensors, metadata=dump_metadata(said), spare_bytes=len(there.header))
    new = create(roomier_of(path))
    try:
        _give_size(new, layout.total_bytes, reserve=reserve)
        write_at(new, layout.header, 0)
        for key, spec in layout.tensors.items():
            copy_range(
                fd,
                new,
                source_offset=there.offsets[key],
                target_offset=layout.offsets[key],
                num_bytes=min((kept or {}).get(key, spec).num_bytes, there.tensors[key].num_bytes),
                advance=lambda num_bytes: None,
            )
        sync(new)
        publish(roomier_of(path), path, fd=new)
    except BaseException:
        os.close(new)
        roomier_of(path).unlink(missing_ok=True)
        raise
    os.close(fd)
    return new, layout


def _give_size(fd: int, num_bytes: int, *, reserve: bool) -> None:
    if reserve:
        preallocate(fd, num_bytes)
    else:
        os.ftruncate(fd, num_bytes)


def _first_rows(spec: TensorSpec, num_rows: int) -> TensorSpec:
    return TensorSpec(spec.dtype, (min(num_rows, spec.shape[0]), *spec.shape[1:]))


def _differing(wanted: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    """Yields what differs between metadata that is wanted and what a file has, besides what may."""
    now, then = (
        dict(flatten({key: value for key, value in one.items() if key not in _OF_ATTEMPTS}))
        for one in (wanted, said)
    )
    # The long list last: what it lacks, other keys tell in fewer words.
    for key in sorted(now.keys() | then.keys(), key=lambda key: (key == "checksum_columns", key)):
        if now.get(key) != then.get(key):
            yield f"{key} {short(then.get(key))}, now {short(now.get(key))}"


def _differing_tensors(wanted: Mapping[str, TensorSpec], there: Mapping[str, TensorSpec]) -> Iterator[str]:
    for name in sorted(wanted.keys() | there.keys()):
        now, then = wanted.get(name), there.get(name)
        if now != then:
            yield f"{name} {_in_words(then)}, now {_in_words(now)}"


def _in_words(spec: TensorSpec | None) -> str:
    return "none" if spec is None else f"{spec.dtype} {spec.shape}"


def _few(differing: Sequence[str]) -> str:
    more = f"; and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
    return "; ".join(differing[:_MAX_NAMED]) + more
