"""Where each tensor lies in a safetensors file: one header, made before the first byte of data exists.

The format is that of https://github.com/huggingface/safetensors (README, "Format"): eight bytes with the
length of the header, the header (JSON, may end in spaces), then the tensors without holes. Knowing every
shape beforehand, we write the header first and put each row in its final place later.
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError
from flannel_pl.paths import header_copy_of, is_partial
from flannel_pl.recording.formats.metadata import (
    CHECKSUM_KEY,
    METADATA_KEY,
    NO_CHECKSUM,
    check_metadata,
    checksum_field,
    header_checksum,
    num_marks,
    parse_json,
    short,
)
from flannel_pl.recording.formats.opening import Descriptor, unreachable
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec

PAGE_BYTES = 4096
"""The data starts at a multiple of this, so that rows can be mapped and copied by whole pages."""

SPARE_HEADER_BYTES = 4 * PAGE_BYTES
"""Left free in the header of a run's file: what is said there grows with every attempt."""

FILLER = "unused/"
"""What the keys of fillers begin with: U8 tensors over space that was reserved for rows that never came,
since the format allows no holes. They hold nothing, and no reader of ours shows one."""

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 50_000
MAX_MARKS = 400_000
"""More than that is refused (marks are the braces, brackets and commas of the header), so that no file keeps
a reader busy for longer than a second. A gathered file of a thousand runs needs half of it or less."""

MAX_AXES = 64
_MAX_EMPTY_ELEMENTS = 2**24

_DTYPE_RANK = {code: rank for rank, code in enumerate(NUMPY_DTYPES)}


@dataclass(frozen=True)
class FileLayout:
    """One safetensors file, without its data."""

    header: bytes
    """Everything before the data: length, JSON, padding."""

    tensors: dict[str, TensorSpec]
    """Key -> dtype and shape, in the order of the file."""

    offsets: dict[str, int]
    """Key -> first byte of its data, counted from the start of the file."""

    metadata: dict[str, str]
    """The header's `__metadata__`."""

    total_bytes: int
    """Size of the whole file."""

    unused: tuple[tuple[int, int], ...] = ()
    """First byte and end of every filler."""

    @property
    def own_bytes(self) -> int:
        """Size of the header."""
        return len(self.header)

    @property
    def used_bytes(self) -> int:
        """Size of the file without its fillers."""
        return self.total_bytes - sum(end - start for start, end in self.unused)

    @functools.cached_property
    def flannel(self) -> dict[str, Any]:
        """The parsed metadata of flannel-pl; empty for a file that something else wrote."""
        return parse_json(self.metadata.get(METADATA_KEY, "{}"))

    @property
    def header_is_right(self) -> bool:
        """Whether every byte of the header is as it was written; False if the file does not say."""
        digits = self.flannel.get(CHECKSUM_KEY)
        return isinstance(digits, str) and header_checksum(self.header, digits) == digits


def plan_layout(
    tensors: Mapping[str, TensorSpec],
    *,
    metadata: str,
    min_header_bytes: int = 0,
    spare_bytes: int = 0,
    reserved: Mapping[str, TensorSpec] | None = None,
) -> FileLayout:
    """Gives every tensor its place.

    Args:
        tensors: Key -> dtype and shape, in any order. The file has larger dtypes first, then goes by name,
            as the reference implementation writes them.
        metadata: Value of the one metadata key, see `dump_metadata`.
        min_header_bytes: The header is filled up with spaces to at least this size.
        spare_bytes: And has at least so many spaces at its end.
        reserved: Key -> the larger tensor that has the place; fillers cover what is left of that.

    Returns:
        A layout whose header depends on nothing but the arguments.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (_DTYPE_RANK[item[1].dtype], item[0])))
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    begins: dict[str, int] = {}
    fillers: list[tuple[int, int]] = []
    end = 0
    for key, spec in ordered.items():
        begins[key], taken = end, end + spec.num_bytes
        end += (reserved or {}).get(key, spec).num_bytes
        entries[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begins[key], taken]}
        if taken < end:
            filler = {"dtype": "U8", "shape": [end - taken], "data_offsets": [taken, end]}
            entries[f"{FILLER}{len(fillers)}"] = filler
            fillers.append((taken, end))
    text = json.dumps(entries, separators=(",", ":")).encode()
    data_start = -(-max(8 + len(text) + spare_bytes, min_header_bytes) // PAGE_BYTES) * PAGE_BYTES
    header = (data_start - 8).to_bytes(8, "little") + text.ljust(data_start - 8)
    digits = header_checksum(header, NO_CHECKSUM)
    header = header.replace(checksum_field(NO_CHECKSUM), checksum_field(digits))
    metadata = json.loads(header[8:])["__metadata__"][METADATA_KEY]
    offsets = {key: data_start + begin for key, begin in begins.items()}
    unused = tuple((data_start + first, data_start + last) for first, last in fillers)
    return FileLayout(header, ordered, offsets, {METADATA_KEY: metadata}, data_start + end, unused)


def read_layout(path: Path) -> FileLayout:
    """Reads the header of a safetensors file, and checks it against the size of the file.

    If writing the header of an unfinished file anew was cut off, its copy beside it counts.

    Raises:
        Unreachable: If the file cannot be read.
        RunError: If it is no safetensors file, or is cut short.
    """
    descriptor = Descriptor(path)
    try:
        return layout_of(descriptor)
    finally:
        descriptor.close()


def layout_of(descriptor: Descriptor) -> FileLayout:
    """Does what `read_layout` does with a file that is at hand.

    Raises:
        RunError: As `read_layout` does.
    """
    path, copy = descriptor.path, header_copy_of(descriptor.path)
    if is_partial(path) and copy.exists():
        beside = Descriptor(copy)
        for source in (descriptor, beside):
            with contextlib.suppress(RunError, OSError):
                layout = _layout_of(source, total_bytes=path.stat().st_size)
                if layout.header_is_right:
                    beside.close()
                    return layout
        beside.close()
    return _layout_of(descriptor, total_bytes=None)


def _layout_of(descriptor: Descriptor, *, total_bytes: int | None) -> FileLayout:
    """Reads a header; `total_bytes` is the size of the file that it belongs to, if that is not this one."""
    path = descriptor.path
    try:
        with descriptor.opened() as fd:
            total_bytes = os.fstat(fd).st_size if total_bytes is None else total_bytes
            length_bytes = descriptor.read(8, offset=0)
            num_header_bytes = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < 8 or num_header_bytes > total_bytes - 8:
                raise ValueError("it does not start with the length of a header")
            if num_header_bytes > MAX_HEADER_BYTES:
                raise ValueError(
                    f"its header has {num_header_bytes} bytes, expected {MAX_HEADER_BYTES} at most"
                )
            text = descriptor.read(num_header_bytes, offset=8)
        if num_marks(text) > MAX_MARKS:
            raise ValueError("its header lists more than any recording has")
        return _parse(length_bytes + text, parse_json(text.decode("utf-8")), total_bytes)
    except OSError as error:
        raise unreachable(path, error) from error
    except ValueError as error:
        raise RunError(
            f"{path} is not a complete safetensors file: {error}. Bring it back from a copy; if there "
            "is none, it has to be recorded again."
        ) from error


def is_readable(layout: FileLayout) -> bool:
    """Tells whether `read_layout` would accept a header that long."""
    return (
        len(layout.header) <= MAX_HEADER_BYTES
        and len(layout.tensors) + len(layout.unused) <= MAX_TENSORS
        and num_marks(layout.header) <= MAX_MARKS
    )


def _parse(header: bytes, entries: dict[str, Any], total_bytes: int) -> FileLayout:
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its __metadata__ are not an object of strings")
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it has {len(entries)} tensors, expected {MAX_TENSORS} at most")
    parsed = [(key, *_parse_entry(key, entry, total_bytes)) for key, entry in entries.items()]
    tensors, offsets, unused, end = {}, {}, [], 0
    for key, spec, place in sorted(parsed, key=lambda item: item[2]):
        if place != (end, end + spec.num_bytes):
            raise ValueError(f"{key!r} lies at {short(place)}, expected {(end, end + spec.num_bytes)}")
        start, end = end, end + spec.num_bytes
        if METADATA_KEY in metadata and key.startswith(FILLER) and spec.dtype == "U8":
            unused.append((len(header) + start, len(header) + end))
        else:
            tensors[key], offsets[key] = spec, len(header) + start
    if len(header) + end != total_bytes:
        raise ValueError(f"it has {total_bytes} bytes, its header asks for {len(header) + end}")
    layout = FileLayout(header, tensors, offsets, metadata, total_bytes, tuple(unused))
    check_metadata(layout.flannel)
    return layout


def _parse_entry(key: str, entry: Any, total_bytes: int) -> tuple[TensorSpec, tuple[int, ...]]:
    """Returns a tensor's spec, and the two ends of its data."""
    if not key.isprintable():
        raise ValueError(f"the key {short(key)} has characters that cannot be printed")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{short(key)} is {short(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise ValueError(
            f"{short(key)} has the dtype {short(dtype)}, expected one of {', '.join(NUMPY_DTYPES)}"
        )
    if not _is_sizes(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"{short(key)} has the shape {short(shape)}, expected a list of sizes")
    # An empty tensor may claim any size along its other axes, and whoever reads it would run out of memory.
    if math.prod(max(size, 1) for size in shape) > max(total_bytes, _MAX_EMPTY_ELEMENTS):
        raise ValueError(
            f"{short(key)} has the shape {short(shape)}, which no file of {total_bytes} bytes holds"
        )
    if not _is_sizes(place) or len(place) != 2:
        raise ValueError(f"{short(key)} lies at {short(place)}, expected its first byte and its end")
    return TensorSpec(dtype, tuple(shape)), tuple(place)


def _is_sizes(value: Any) -> bool:
    """Tells whether `value` is a list of numbers that can count bytes; True and 1.0 are none."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)
