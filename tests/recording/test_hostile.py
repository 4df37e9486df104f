"""Files that nobody writes by accident: whoever opens one gets a clear error, and soon."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.errors import RunError
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.formats.safetensors.layout import (
    MAX_HEADER_BYTES,
    MAX_MARKS,
    MAX_TENSORS,
    read_layout,
)
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.info import describe_recording
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import make_experiment

GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DATA = bytes(16)


def file(text: str | bytes, *, length: int | None = None, data: bytes = DATA) -> bytes:
    header = text if isinstance(text, bytes) else text.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(**changes: Any) -> bytes:
    return file(json.dumps({"x": GOOD | changes}))


def metadata(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return file(json.dumps({"__metadata__": {"flannel": text}, "x": GOOD}))


def huge_table(num_tensors: int) -> bytes:
    empty = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    entries = ",".join(f'"{i:x}":{empty}' for i in range(num_tensors))
    return file("{" + entries + "}", data=b"")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "length beyond the file": lambda: file("{}", length=1000),
    "length 2**63": lambda: file("{}", length=2**63),
    "length 2**64 - 1": lambda: file("{}", length=2**64 - 1),
    "no header": lambda: file("", data=b""),
    "header too long": lambda: file(b" " * (MAX_HEADER_BYTES + 1)),
    "a header full of tensors": lambda: huge_table(MAX_HEADER_BYTES // 60),
    "too many tensors": lambda: huge_table(MAX_TENSORS + 1),
    "a header full of empty objects": lambda: file("[" + "{}," * 5_000_000 + "{}]"),
    "as many empty objects as are parsed": lambda: file("[" + "{}," * (MAX_MARKS // 2 - 2) + "{}]"),
    "as many numbers as are parsed": lambda: file("[" + "1," * (MAX_MARKS - 2) + "1]"),
    "as many nested lists as are parsed": lambda: file("[" + "[[[]]]," * (MAX_MARKS // 4 - 2) + "1]"),
    "nested": lambda: file("[" * 100_000),
    "nested objects": lambda: file('{"x":' * 100_000),
    "nested all the way to the limit": lambda: file("[" * MAX_HEADER_BYTES),
    "nested shape": lambda: entry(shape=json.loads("[" * 80 + "]" * 80)),
    "a list": lambda: file("[1, 2]"),
    "a number": lambda: file("7"),
    "another encoding": lambda: file(json.dumps({"x": GOOD}).encode("utf-16")),
    "no UTF-8": lambda: file(b'{"\xff": 1}'),
    "a key twice": lambda: file(f'{{"x": {json.dumps(GOOD)}, "x": {json.dumps(GOOD)}}}'),
    "a shape twice": lambda: file(
        '{"x": {"dtype": "F32", "shape": [9], "shape": [2, 2], "data_offsets": [0, 16]}}'
    ),
    "a key that cannot be printed": lambda: file(json.dumps({"x\ud800\n": GOOD})),
    "NaN": lambda: file('{"x": NaN}'),
    "entry is a list": lambda: file('{"x": [1, 2]}'),
    "entry is null": lambda: file('{"x": null}'),
    "entry lacks the shape": lambda: file('{"x": {"dtype": "F32", "data_offsets": [0, 16]}}'),
    "entry has more": lambda: entry(shapes=[1]),
    "shape is a number": lambda: entry(shape=4),
    "shape is text": lambda: entry(shape="22"),
    "shape is an object": lambda: entry(shape={"0": 2}),
    "shape has floats": lambda: entry(shape=[2.0, 2]),
    "shape has a bool": lambda: entry(shape=[True, 4]),
    "shape is negative": lambda: entry(shape=[-2, -2]),
    "shape overflows": lambda: entry(shape=[2**62, 8], data_offsets=[0, 0]),
    "shape is beyond 64 bits": lambda: entry(shape=[2**64]),
    "shape has a number of a million digits": lambda: file(
        json.dumps({"x": GOOD}).replace("[2, 2]", f"[{'9' * 1_000_000}]")
    ),
    "shape has a million axes": lambda: entry(shape=[2**62] * 1_000_000),
    "shape is empty but huge": lambda: entry(shape=[2**50, 0], data_offsets=[0, 0]),
    "dtype is unknown": lambda: entry(dtype="F8"),
    "dtype is a list": lambda: entry(dtype=["F32"]),
    "offsets are negative": lambda: entry(data_offsets=[-16, 0]),
    "offsets are huge": lambda: entry(data_offsets=[2**63, 2**63 + 16]),
    "offsets are backwards": lambda: entry(data_offsets=[16, 0]),
    "offsets are floats": lambda: entry(data_offsets=[0.0, 16.0]),
    "offsets are three": lambda: entry(data_offsets=[0, 8, 16]),
    "offsets are bools": lambda: entry(data_offsets=[False, 16]),
    "overlapping": lambda: file(json.dumps({"x": GOOD, "y": GOOD})),
    "a hole": lambda: file(json.dumps({"x": GOOD | {"data_offsets": [4, 20]}}), data=bytes(20)),
    "metadata are a list": lambda: file(json.dumps({"__metadata__": [], "x": GOOD})),
    "metadata hold a number": lambda: file(json.dumps({"__metadata__": {"a": 1}, "x": GOOD})),
    "ours are no JSON": lambda: metadata("{"),
    "ours are a list": lambda: metadata("[]"),
    "ours are nested": lambda: metadata("[" * 100_000),
    "ours are nested below the limit of the parser": lambda: metadata('{"config":' * 400 + "1" + "}" * 400),
    "ours hold NaN": lambda: metadata('{"seed": NaN}'),
    "run is text": lambda: metadata({"run": "0"}),
    "run is a bool": lambda: metadata({"run": True}),
    "runs are a number": lambda: metadata({"runs": 3}),
    "runs lack their index": lambda: metadata({"runs": [{}]}),
    "runs are lists": lambda: metadata({"runs": [[0]]}),
    "num_rows is negative": lambda: metadata({"num_rows": -1}),
    "every_n_steps is zero": lambda: metadata({"every_n_steps": 0}),
    "every_n_steps is a float": lambda: metadata({"runs": [{"index": 0, "every_n_steps": 0.5}]}),
    "columns are numbers": lambda: metadata({"checksum_columns": [1]}),
    "static checksums are a list": lambda: metadata({"static_checksums": []}),
    "config is text": lambda: metadata({"config": "model"}),
    "a group of the config is text": lambda: metadata({"config": {"model": "gpt"}}),
    "data hashes are a list": lambda: metadata({"provenance": {"data": [1]}}),
}


@pytest.fixture(params=HOSTILE.values(), ids=list(HOSTILE))
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(request.param())
    return path


def in_a_second(call: Callable[[], Any]) -> Any:
    """Returns what a call does, which takes less than a second of computing, at least at a third try."""
    seconds = []
    for _ in range(3):  # what else the machine does shows even in the time that the process computes
        start_s = time.process_time()
        result = call()
        seconds.append(time.process_time() - start_s)
        if seconds[-1] < 1:
            return result
    raise AssertionError(seconds)


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(RunError, match=r"x.safetensors is not a complete safetensors file: .+ again") as got:
        read(path)
    return str(got.value)


def test_every_reader_refuses_it_soon(hostile: Path) -> None:
    for read in (read_layout, open_recording, describe_recording):
        message = in_a_second(partial(refusal, read, hostile))
        assert len(message) < 1000
        message.encode()
    report = in_a_second(partial(verify, hostile))
    assert "x.safetensors is not a complete safetensors file" in report.damage[0]
    assert num_good_rows(hostile) == 0


def test_gather_refuses_it(hostile: Path, tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "exp", num_runs=1)
    hostile.replace(paths.run(0).recording)

    def refused() -> None:
        with pytest.raises(RunError, match=r"run_0/recording.safetensors is not a complete safetensors file"):
            gather(paths.folder)

    in_a_second(refused)
    assert not paths.gathered.exists()


def test_the_longest_header_is_read_soon(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(huge_table(MAX_TENSORS))
    start_s = time.process_time()
    assert len(read_layout(path).tensors) == MAX_TENSORS
    assert time.process_time() - start_s < 5  # about 1 s on a quiet machine


def arrays(**tensors: "np.ndarray[Any, Any]") -> dict[str, Any]:
    return tensors


ODD: dict[str, dict[str, Any]] = {
    "a run's tensor without rows": arrays(run_0_losses=np.array(1.0)),
    "a very high run": {f"run_{'9' * 5000}_losses": np.zeros(3)},
    "run numbers in other digits": {"run_\u0663_losses": np.zeros(3), "run_007_losses": np.zeros(3)},
    "a base seed that is no number": arrays(base_seed=np.array(np.nan), run_0_losses=np.zeros(2)),
    "steps of another shape": arrays(run_0_recorded_steps=np.zeros((2, 2, 2))),
    "steps that are bits": arrays(run_0_recorded_steps=np.zeros(3, bool)),
    "no rows": arrays(run_0_recorded_steps=np.zeros(0, np.int64), run_0_losses=np.zeros(0)),
    "scalars of every kind": arrays(
        a=np.array(True), b=np.array(2.5, np.float16), c=np.array(2**63, np.uint64)
    ),
}


@pytest.mark.parametrize("tensors", ODD.values(), ids=list(ODD))
def test_a_valid_file_with_odd_tensors_is_described_or_refused(
    tmp_path: Path, tensors: dict[str, Any]
) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    if "run_0_losses" in tensors and not tensors["run_0_losses"].shape:
        with pytest.raises(RunError, match=r"run_0_losses in .*x.safetensors has no rows"):
            describe_recording(path)
    else:
        assert str(path) in describe_recording(path)
