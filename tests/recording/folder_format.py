"""A second format, made up for tests: a folder with one .npy of bytes per tensor, and a header."""

import json
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.recording.formats.attempts import with_attempt
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.files import Format
from flannel_pl.recording.formats.metadata import CHECKSUM_KEY
from flannel_pl.recording.formats.schema import RecordingSchema, ShardPlan
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec

HEADER = "header.json"

_LOADING = threading.Lock()
"""numpy reads a header by Python's own parser, in which threads of Python 3.11 get in each other's way."""


@dataclass(frozen=True)
class FolderHeader:
    tensors: dict[str, TensorSpec]
    flannel: dict[str, Any]
    own_bytes: int
    header_is_right = True

    @property
    def used_bytes(self) -> int:
        return self.own_bytes + sum(spec.num_bytes for spec in self.tensors.values())

    @classmethod
    def read(cls, folder: Path) -> "FolderHeader":
        try:
            text = (folder / HEADER).read_text()
            tensors, said = json.loads(text)
        except (OSError, ValueError) as error:
            raise RunError(f"{folder} is no recording: {error}") from error
        return cls(
            {key: TensorSpec(dtype, tuple(shape)) for key, (dtype, shape) in tensors.items()}, said, len(text)
        )

    def write(self, folder: Path) -> None:
        tensors = {key: (spec.dtype, spec.shape) for key, spec in self.tensors.items()}
        (folder / HEADER).write_text(json.dumps([tensors, self.flannel]))


class FolderFile:
    def __init__(self, path: Path) -> None:
        self.path, self.header = path, FolderHeader.read(path)

    def read(self, key: str) -> Array:
        spec = self.header.tensors[key]
        array = np.empty(spec.shape, NUMPY_DTYPES[spec.dtype])
        self.read_into(key, array)
        return array

    def read_into(self, key: str, array: Array, *, start_row: int = 0) -> None:
        row_bytes = array[:1].nbytes if array.ndim else array.nbytes
        self.read_bytes_into(key, array.reshape(-1).view(np.uint8).data, start_byte=start_row * row_bytes)

    def read_bytes_into(self, key: str, view: memoryview, *, start_byte: int) -> None:
        with _LOADING:
            content = np.load(self.path / f"{key}.npy")
        view[:] = content[start_byte : start_byte + len(view)].data

    def close(self) -> None: ...

    def __enter__(self) -> "FolderFile":
        return self

    def __exit__(self, *_: object) -> None: ...


class FolderSink:
    def __init__(self, plan: ShardPlan) -> None:
        self.final, self.partial = plan.final, plan.partial
        self.schema, self.static = plan.schema, plan.static
        said = json.loads(plan.metadata)
        del said[CHECKSUM_KEY]
        self.header, self.environment = FolderHeader(plan.specs, said, 0), plan.environment
        self.columns: dict[str, np.memmap[Any, Any]] = {}

    @property
    def size(self) -> int:
        return folder_bytes(self.schema, {})

    def open(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self._attempt(0)
        for key, spec in self.header.tensors.items():
            np.save(self.partial / f"{key}.npy", np.zeros(spec.num_bytes, np.uint8))
        for name, array in self.static.items():
            np.save(self.partial / f"{name}.npy", np.frombuffer(array.tobytes(), np.uint8))
        self._map()

    def reopen(self, first_row: int) -> None:
        there = FolderHeader.read(self.partial)
        if there.tensors != self.header.tensors:
            raise RunError(f"{self.partial} was begun with other columns")
        self.header.flannel["attempts"] = there.flannel.get("attempts", [])
        self._attempt(first_row)
        self._map()

    def rows(self, name: str, rows: range) -> bytes:
        return self.columns[name][rows.start : rows.stop].tobytes()

    def write_row(self, row: int, cells: Iterable[tuple[str, memoryview]]) -> None:
        for name, data in cells:
            self.columns[name][row] = np.frombuffer(data, np.uint8)

    def commit(self) -> None:
        for column in self.columns.values():
            column.flush()

    def publish(self, num_rows: int, ended: EarlyEnd | None) -> None:
        if ended is not None:
            specs = self.header.tensors | replace(self.schema, num_rows=num_rows).specs()
            said = self.header.flannel | {"num_rows": num_rows, "ended": ended.said}
            for name, rows in self.columns.items():
                np.save(self.partial / f"{name}.npy", rows[:num_rows].reshape(-1).copy())
            FolderHeader(specs, said, 0).write(self.partial)
        self.partial.replace(self.final)

    def abort(self) -> None:
        shutil.rmtree(self.partial)

    def close(self) -> None:
        self.columns.clear()

    def _attempt(self, first_row: int) -> None:
        if self.environment is not None:
            attempts = with_attempt(self.header.flannel, first_row, self.environment)
            self.header.flannel["attempts"] = attempts
        self.header.write(self.partial)

    def _map(self) -> None:
        for name in (*self.schema.names, "checksums"):
            rows = np.load(self.partial / f"{name}.npy", mmap_mode="r+")
            self.columns[name] = rows.reshape(self.schema.num_rows, -1)


def folder_bytes(schema: RecordingSchema, static: Mapping[str, TensorSpec]) -> int:
    return sum(spec.num_bytes for spec in schema.specs(static).values())


FOLDER = Format("folder", lambda path: (path / HEADER).is_file(), FolderFile, FolderSink, folder_bytes)
