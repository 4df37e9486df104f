"""Recordings made by the project's own writer, of random bits, and ways to change a bit in them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.experiment import RunPaths
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.formats.schema import RecordingSchema
from flannel_pl.recording.formats.specs import NUMPY_DTYPES
from tests.recording.recording_samples import make_schema, make_writer, write_rows

Array = np.ndarray[Any, Any]


def record(
    folder: Path,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
    tokens: Sequence[int] | None = None,
    **changes: Any,
) -> Path:
    """Records a run; returns its file.

    Args:
        folder: Of the run.
        seed: Of its bits; equal seeds give equal bits in equal steps, if sizes and dtypes are equal.
        rows: Seeds of the rows' bits; their numbers if None.
        metadata: What the file says besides run 0 and seed 42.
        tokens: Ids of the recorded tokens, if they are a subset.
        changes: Of `make_schema`.
    """
    static = {} if tokens is None else {"recorded_tokens": np.array(tokens, np.int64)}
    sizes = {} if tokens is None else {"num_tokens": len(tokens)}
    schema: RecordingSchema = make_schema(**sizes, **changes)
    writer = make_writer(
        folder,
        schema=schema,
        static=static,
        metadata={"run": 0, "seed": 42, "swept": {}} | (metadata or {}),
    )
    write_rows(writer, range(schema.num_rows) if rows is None else rows, seed=seed)
    writer.finish()
    return RunPaths(folder).recording


def copy(path: Path, name: str) -> Path:
    """Copies a recording to a file beside its folder."""
    target = path.parent.parent / f"{name}.safetensors"
    shutil.copy(path, target)
    return target


def read(path: Path, key: str) -> Array:
    """Returns a whole tensor, bits and all, without a reader of ours."""
    layout = read_layout(path)
    spec, offset = layout.tensors[key], layout.offsets[key]
    return np.frombuffer(
        path.read_bytes()[offset : offset + spec.num_bytes], NUMPY_DTYPES[spec.dtype]
    ).reshape(spec.shape)


def write(path: Path, key: str, array: Array) -> None:
    """Replaces a whole tensor by another of its size."""
    layout = read_layout(path)
    assert array.nbytes == layout.tensors[key].num_bytes
    with path.open("r+b") as file:
        file.seek(layout.offsets[key])
        file.write(array.tobytes())


def put(path: Path, key: str, place: tuple[int, ...], value: float) -> None:
    """Replaces one element."""
    array = read(path, key).copy()
    array[place] = value
    write(path, key, array)


def flip(path: Path, key: str, place: tuple[int, ...], *, bit: int = 0) -> None:
    """Flips one bit of an element, the lowest by default."""
    array = read(path, key).copy()
    array.view(f"u{array.dtype.itemsize}")[place] ^= np.array(1 << bit).astype(f"u{array.dtype.itemsize}")
    write(path, key, array)
