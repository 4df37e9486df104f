"""Where each tensor lies in a safetensors file: one header, made before the first byte of data exists.

The format is that of https://github.com/huggingface/safetensors (README, "Format"): eight bytes with the
length of the header, the header (JSON, may end in spaces), then the tensors without holes. Knowing every
shape beforehand, we write the header first and put each row in its final place later.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flannel_pl.errors import RunError

PAGE_BYTES = 4096
"""The data starts at a multiple of this, so that rows can be mapped and copied by whole pages."""

METADATA_KEY = "flannel"
"""The only key of a header's `__metadata__`: with several, their order differs from process to process."""

MAX_HEADER_BYTES = 100_000_000
"""What the reference implementation accepts at most."""

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Code of each dtype in a header -> numpy's, in the order the reference implementation lays tensors out."""

_DTYPE_RANK = {code: rank for rank, code in enumerate(NUMPY_DTYPES)}


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor."""

    dtype: str
    """Code of the dtype, a key of `NUMPY_DTYPES`, e.g. BF16."""

    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, array: "np.ndarray[Any, Any]") -> "TensorSpec":
        """Returns the spec of a numpy array."""
        code = next(code for code, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
        return cls(code, tuple(array.shape))


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

    @property
    def flannel(self) -> dict[str, Any]:
        """The parsed metadata of flannel-pl; empty for a file that something else wrote."""
        return dict(json.loads(self.metadata.get(METADATA_KEY, "{}")))


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Returns `metadata` as sorted JSON: equal content gives equal bytes.

    Raises:
        ValueError: If it holds NaN or an infinity, which JSON has no word for.
    """
    return json.dumps(metadata, sort_keys=True, allow_nan=False)


def plan_layout(tensors: Mapping[str, TensorSpec], *, metadata: str) -> FileLayout:
    """Gives every tensor its place.

    Args:
        tensors: Key -> dtype and shape, in any order. The file has larger dtypes first, then goes by name,
            as the reference implementation writes them.
        metadata: Value of the one metadata key, see `dump_metadata`.

    Returns:
        A layout whose header depends on nothing but the arguments.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (_DTYPE_RANK[item[1].dtype], item[0])))
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    begins: dict[str, int] = {}
    end = 0
    for key, spec in ordered.items():
        begins[key], end = end, end + spec.num_bytes
        entries[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begins[key], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    data_start = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES
    header = (data_start - 8).to_bytes(8, "little") + text.ljust(data_start - 8)
    offsets = {key: data_start + begin for key, begin in begins.items()}
    return FileLayout(header, ordered, offsets, {METADATA_KEY: metadata}, data_start + end)


def read_layout(path: Path) -> FileLayout:
    """Reads the header of a safetensors file, and checks it against the size of the file.

    Raises:
        RunError: If the file cannot be read, is no safetensors file, or is cut short.
    """
    try:
        with path.open("rb") as file:
            total_bytes = os.fstat(file.fileno()).st_size
            length_bytes = file.read(8)
            num_header_bytes = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < 8 or num_header_bytes > min(total_bytes - 8, MAX_HEADER_BYTES):
                raise ValueError("it does not start with the length of a header")
            text = file.read(num_header_bytes)
        return _parse(length_bytes + text, json.loads(text), total_bytes)
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is not a complete safetensors file: {reason}. Copy or record it again."
        ) from error


def _parse(header: bytes, entries: dict[str, Any], total_bytes: int) -> FileLayout:
    metadata = entries.pop("__metadata__", {})
    tensors, offsets, end = {}, {}, 0
    for key, entry in sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        if entry["dtype"] not in NUMPY_DTYPES:
            raise ValueError(
                f"{key} has the dtype {entry['dtype']}, expected one of {', '.join(NUMPY_DTYPES)}"
            )
        spec = TensorSpec(entry["dtype"], tuple(entry["shape"]))
        if entry["data_offsets"] != [end, end + spec.num_bytes]:
            raise ValueError(
                f"{key} lies at {entry['data_offsets']}, expected [{end}, {end + spec.num_bytes}]"
            )
        tensors[key], offsets[key], end = spec, len(header) + end, end + spec.num_bytes
    if len(header) + end != total_bytes:
        raise ValueError(f"it has {total_bytes} bytes, its header asks for {len(header) + end}")
    layout = FileLayout(header, tensors, offsets, metadata, total_bytes)
    _ = layout.flannel  # so that metadata that is no JSON is found here, with the name of the file
    return layout
