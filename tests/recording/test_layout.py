import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from flannel_pl.errors import RunError
from flannel_pl.recording.formats.metadata import dump_metadata
from flannel_pl.recording.formats.safetensors.layout import PAGE_BYTES, FileLayout, plan_layout, read_layout
from flannel_pl.recording.formats.specs import TensorSpec

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "b": np.arange(6, dtype=np.int64).reshape(2, 3),
    "a": np.linspace(0, 1, 5).astype(ml_dtypes.bfloat16),
    "zz": np.array([2**63 + 1], np.uint64),
    "c": np.array([True, False, True]),
    "one": np.array(0.5, np.float32),
    "half": np.ones((2, 2), np.float16),
    "none": np.zeros((0, 4), np.float32),
}


def write(path: Path, metadata: str = '{"schema": 1}') -> FileLayout:
    layout = plan_layout({key: TensorSpec.of(x) for key, x in ARRAYS.items()}, metadata=metadata)
    data = b"".join(ARRAYS[key].tobytes() for key in layout.tensors)
    path.write_bytes(layout.header + data)
    return layout


def test_stock_readers_read_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    layout = write(path)
    assert path.stat().st_size == layout.total_bytes
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert loaded[key].dtype == array.dtype
        assert loaded[key].shape == array.shape
        assert loaded[key].tobytes() == array.tobytes()
    tensors = safetensors.torch.load_file(path)
    assert tensors["a"].dtype == torch.bfloat16
    assert tensors["zz"].item() == 2**63 + 1
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"flannel": '{"schema": 1}'}


def test_order_of_tensors_is_that_of_the_reference_implementation() -> None:
    reference = safetensors.numpy.save(ARRAYS)
    entries = json.loads(reference[8 : 8 + int.from_bytes(reference[:8], "little")])
    layout = plan_layout({key: TensorSpec.of(x) for key, x in ARRAYS.items()}, metadata="{}")
    assert list(layout.tensors) == list(entries)


def test_data_starts_on_a_page_and_the_header_says_nothing_else(tmp_path: Path) -> None:
    for length in (0, 3000, 3500, 3600, 3700, 5000):
        layout = write(tmp_path / "x", metadata='{"x": "' + "m" * length + '"}')
        assert len(layout.header) % 4096 == 0
        assert int.from_bytes(layout.header[:8], "little") == len(layout.header) - 8
        assert read_layout(tmp_path / "x") == layout


def test_equal_content_gives_equal_bytes() -> None:
    specs = {key: TensorSpec.of(x) for key, x in ARRAYS.items()}
    backwards = dict(reversed(specs.items()))
    assert plan_layout(specs, metadata="{}").header == plan_layout(backwards, metadata="{}").header


def test_a_file_of_the_stock_writer_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x")
    layout = read_layout(tmp_path / "x")
    assert layout.flannel == {}
    content = (tmp_path / "x").read_bytes()
    for key, array in ARRAYS.items():
        start = layout.offsets[key]
        assert content[start : start + array.nbytes] == array.tobytes()


def damage(content: bytes, kind: str) -> bytes:
    if kind == "empty":
        return b""
    if kind == "not safetensors":
        return b"PK\x03\x04 something else entirely" * 10
    if kind == "cut":
        return content[:-1]
    if kind == "longer":
        return content + b"x"
    if kind == "header cut":
        return content[:100]
    if kind == "no JSON":
        return content[:8] + b"\xff" + content[9:]
    if kind == "unknown dtype":
        return content.replace(b'"F16"', b'"Q16"')
    if kind == "overlap":
        entry = re.search(rb'"one":.*?\[\].*?\[(\d+),(\d+)\]', content)
        assert entry is not None
        earlier = b"%d,%d]" % (int(entry[1]) - 1, int(entry[2]) - 1)
        return content.replace(entry[0], entry[0].replace(b"%s,%s]" % (entry[1], entry[2]), earlier))
    if kind == "hole":
        return content.replace(b'"shape":[2,2]', b'"shape":[2,1]')
    return content.replace(b'"{\\"schema\\": 1}"', b'"{\\"schema\\"- 1}"')


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "not safetensors", "cut", "longer", "header cut", "no JSON"),
        *("unknown dtype", "hole", "overlap", "metadata no JSON"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    content = path.read_bytes()
    assert damage(content, kind) != content
    path.write_bytes(damage(content, kind))
    with pytest.raises(
        RunError,
        match=r"x.safetensors is not a complete safetensors file: .+ Bring it back from a copy; if there is",
    ):
        read_layout(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Cannot read .*nowhere: No such file"):
        read_layout(tmp_path / "nowhere")


def test_what_is_reserved_and_not_taken_is_covered_by_fillers_that_nobody_sees(tmp_path: Path) -> None:
    planned = {
        "a": TensorSpec("I64", (9,)),
        "b": TensorSpec("BF16", (9, 3)),
        "static": TensorSpec("F32", (2,)),
    }
    taken = planned | {"a": TensorSpec("I64", (4,)), "b": TensorSpec("BF16", (4, 3))}
    whole = plan_layout(planned, metadata=dump_metadata({}), spare_bytes=PAGE_BYTES)
    room = len(whole.header)
    layout = plan_layout(taken, metadata=dump_metadata({}), min_header_bytes=room, reserved=planned)
    assert layout.offsets == whole.offsets
    assert layout.total_bytes == whole.total_bytes == layout.used_bytes + 5 * (8 + 6)
    assert [end - start for start, end in layout.unused] == [5 * 8, 5 * 6]
    path = tmp_path / "x.safetensors"
    path.write_bytes(layout.header.ljust(layout.total_bytes, b"\0"))
    read = read_layout(path)
    assert (read.tensors, read.offsets, read.unused) == (layout.tensors, layout.offsets, layout.unused)
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["a", "b", "static", "unused/0", "unused/1"]
        assert file.get_tensor("a").shape == (4,)
