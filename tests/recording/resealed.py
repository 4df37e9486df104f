"""Files that are right by every checksum, and say or hold something else than flannel-pl would write."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.formats.metadata import dump_metadata
from flannel_pl.recording.formats.safetensors.layout import plan_layout
from flannel_pl.recording.formats.schema import static_checksum
from flannel_pl.recording.formats.specs import TensorSpec

Change = Callable[[dict[str, Any]], object]


def reseal(path: Path, tensors: Mapping[str, Any] | None = None, say: Change = lambda metadata: None) -> None:
    """Writes a file anew with other tensors and metadata, and with checksums that are right of them.

    Args:
        path: A shard, a gathered file or the extras of an index.
        tensors: Key -> another array, or None to leave it out.
        say: Changes the metadata; checksums of tensors that are not there are computed after it.
    """
    with open_file(path) as file:
        arrays = {key: file.read(key) for key in file.header.tensors}
        metadata = copy.deepcopy(file.header.flannel)
    changed = dict(tensors or {})
    arrays = {key: array for key, array in (arrays | changed).items() if array is not None}
    say(metadata)
    parts = [(f"run_{run['index']}_", run) for run in metadata.get("runs", [])] or [("", metadata)]
    for prefix, said in parts:
        prefix = f"run_{said.get('run')}_" if f"run_{said.get('run')}_checksums" in arrays else prefix
        if (checksums := arrays.get(f"{prefix}checksums")) is not None and "checksum_columns" in said:
            for column, name in enumerate(said["checksum_columns"]):
                if (rows := changed.get(prefix + name)) is not None:
                    checksums[:, column] = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows]
        _reseal_static(said, arrays, prefix)
    if "runs" in metadata:
        _reseal_static(metadata, arrays, "")
    layout = plan_layout(
        {key: TensorSpec.of(array) for key, array in arrays.items()}, metadata=dump_metadata(metadata)
    )
    path.write_bytes(layout.header + b"".join(arrays[key].tobytes() for key in layout.tensors))


def _reseal_static(said: dict[str, Any], arrays: Mapping[str, "np.ndarray[Any, Any]"], prefix: str) -> None:
    sums = said.get("static_checksums", {})
    said["static_checksums"] = {
        name: static_checksum(arrays[prefix + name]) if prefix + name in arrays else digits
        for name, digits in sums.items()
    }
