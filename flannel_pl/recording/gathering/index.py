"""An index over the shards of an experiment, in Hugging Face's sharded convention: nothing is copied.

The index says which file has which key. What belongs to no run lies beside it in a small file of extras.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.formats.files import Header
from flannel_pl.recording.formats.safetensors.layout import is_readable, plan_layout
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.gathering.contents import Shard
from flannel_pl.recording.writing.disk import new_file, write_at, write_file
from flannel_pl.texts import for_file


def write_index(
    paths: ExperimentPaths, shards: list[Shard], *, extras: Mapping[str, Array], metadata: str
) -> Path:
    """Writes the extras, then the index.

    Args:
        paths: The experiment's files.
        shards: Every run's finished recording.
        extras: The experiment's tensors.
        metadata: The extras' metadata string.

    Raises:
        UserError: If there are more runs than the header of the extras may describe.
        RunError: If the keys of the shards cannot be told apart, or the disk fails.
    """
    bare = [shard for shard in shards if any(key != inner for key, inner in shard.keys.items())]
    if bare:
        raise RunError(
            f"{bare[0].path} has keys without {bare[0].prefix}, "
            "and an index can only name keys as they are in the file. "
            "Gather with --mode single, or set experiment.gather to index before training."
        )
    layout = plan_layout({name: TensorSpec.of(array) for name, array in extras.items()}, metadata=metadata)
    if not is_readable(layout):
        raise UserError(
            f"{len(shards)} runs are too many for an index, whose header no reader would accept. Their own "
            "recordings are whole, and stay"
        )
    with new_file(paths.index_extras, layout.total_bytes) as fd:
        write_at(fd, layout.header, 0)
        for name, array in extras.items():
            write_at(fd, array.tobytes(), layout.offsets[name])
    headers: Mapping[Path, Header] = {
        **{paths.index_extras: layout},
        **{shard.path: shard.layout for shard in shards},
    }
    write_file(paths.index, index_content(paths.folder, headers))
    return paths.index


def index_content(folder: Path, headers: Mapping[Path, Header]) -> bytes:
    """Returns the bytes of the index over some files.

    Args:
        folder: Where the index is; paths in it are relative to that.
        headers: File -> its header.
    """
    weight_map = {
        key: path.relative_to(folder).as_posix() for path, header in headers.items() for key in header.tensors
    }
    total_size = sum(spec.num_bytes for header in headers.values() for spec in header.tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return json.dumps(for_file(index), indent=2, sort_keys=True).encode()
