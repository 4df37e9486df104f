"""A reader made from docs/format.md alone: it shares no code with flannel-pl, and checks what the page says.

`read` opens a file and checks every promise on the page that can be seen in it.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

DTYPES: dict[str, Any] = {  # in the order in which tensors lie in a file
    **{"U64": np.uint64, "I64": np.int64, "F64": np.float64, "F32": np.float32, "U32": np.uint32},
    **{"I32": np.int32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "U16": np.uint16, "I16": np.int16},
    **{"I8": np.int8, "U8": np.uint8, "BOOL": np.bool_},
}
CODES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}
CHOSEN = ("embeddings", "grads", "momentum", "variance", "logits", "losses")
SCALARS = {
    "n_steps": "trainer.max_steps",
    **{name: f"model.{name}" for name in ("init_scale", "learning_rate", "weight_decay")},
    **{name: f"model.{name}" for name in ("adam_beta1", "adam_beta2")},
}
MASKS = ("live_mask", "dead_mask", "live_indices", "dead_indices", "token_occurrence_counts")
TAKEN = {
    **dict.fromkeys(("embeddings", "momentum", "variance"), "after_step"),
    **dict.fromkeys(("grads", "learning_rates", "grad_norms"), "before_step"),
    **dict.fromkeys(("logits", "losses", "losses_f32"), "forward"),
}
COLUMN_KEYS = {"dtype", "sizes", "dims", "taken", "row0", "meaning", "parameter", "quantity", "labels"}
SHARED = {"n_runs", "base_seed", "n_live", "n_dead", "seeds", *SCALARS, *MASKS}


@dataclass
class File:
    header: bytes
    metadata: dict[str, Any]
    tensors: dict[str, "np.ndarray[Any, Any]"]
    """In the order of the file, without fillers."""

    fillers: dict[str, str]
    """Key of each filler -> that of the tensor before it."""


def read(path: Path) -> File:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length
    assert start % 4096 == 0
    header = content[:start]
    text = header[8:].rstrip(b" ")
    assert text.endswith(b"}")
    entries = json.loads(text)
    said = entries.pop("__metadata__")
    assert list(said) == ["flannel"]
    assert said["flannel"].isascii()
    metadata = json.loads(said["flannel"])
    assert list(metadata) == sorted(metadata)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    fillers: dict[str, str] = {}
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = np.dtype(DTYPES[entry["dtype"]])
        size = math.prod(entry["shape"]) * dtype.itemsize
        assert entry["data_offsets"] == [end, end + size], key  # no holes, no overlaps
        if key.startswith("unused/"):
            assert (key, entry["dtype"]) == (f"unused/{len(fillers)}", "U8")
            fillers[key] = list(tensors)[-1]
        else:
            data = content[start + end : start + end + size]
            tensors[key] = np.frombuffer(data, dtype).reshape(entry["shape"])
        end += size
    assert start + end == len(content)
    ranks = {np.dtype(dtype): rank for rank, dtype in enumerate(DTYPES.values())}
    assert list(tensors) == sorted(tensors, key=lambda key: (ranks[tensors[key].dtype], key))
    digits = metadata["header_checksum"].encode()
    field = rb"header_checksum\": \""
    assert header.count(field + digits) == 1
    assert xxhash.xxh3_64_hexdigest(header.replace(field + digits, field + b"0" * 16)).encode() == digits
    assert metadata["schema"] == 2
    return File(header, metadata, tensors, fillers)


def check_shard(file: File, *, prefix: str = "", num_rows: int | None = None) -> None:
    """Checks a shard, or a growing one of which `num_rows` rows are written."""
    metadata = file.metadata
    assert set(file.tensors) == set(check_run(file, metadata, metadata["config"], prefix, num_rows))


def check_gathered(file: File) -> None:
    found = check_experiment(file)
    for run in file.metadata["runs"]:
        found |= set(check_run(file, run, file.metadata["config"], f"run_{run['index']}_", None))
    assert set(file.tensors) == found


def check_run(
    file: File, said: dict[str, Any], config: dict[str, Any], prefix: str, num_rows: int | None
) -> Iterable[str]:
    """Checks one run and returns its keys."""
    wanted = config["recorder"]
    max_steps = said["swept"].get("trainer.max_steps", config["trainer"]["max_steps"])
    rows, every = said["num_rows"], said["every_n_steps"]
    last_step = max_steps
    if "ended" in said:
        assert set(said["ended"]) == {"step", "planned_steps", "reason"}
        last_step = said["ended"]["step"]
        assert 0 < last_step < max_steps == said["ended"]["planned_steps"]
    assert (rows, every) == (1 + last_step // wanted["every_n_steps"], wanted["every_n_steps"])
    columns = [name for name in CHOSEN if name in wanted["tensors"]]
    columns = ["recorded_steps", *columns, "losses_f32", "learning_rates", "grad_norms"]
    assert said["checksum_columns"] == columns
    listed = {
        name: {**file.metadata["columns"].get(name, {}), **said.get("columns", {}).get(name, {})}
        for name in columns
    }
    subset = wanted["tokens"] != "all"
    assert set(said["static_checksums"]) == ({"recorded_tokens"} if subset else set())
    v, d = config["model"]["vocab_size"], config["model"]["hidden_dim"]
    if subset:
        tokens = file.tensors[prefix + "recorded_tokens"]
        assert tokens.dtype == np.int64
        assert (np.diff(tokens) > 0).all()
        assert 0 <= tokens[0] <= tokens[-1] < v
        assert xxhash.xxh3_64_hexdigest(tokens.tobytes()) == said["static_checksums"]["recorded_tokens"]
        v = len(tokens)
    sums = file.tensors[prefix + "checksums"]
    assert (sums.dtype, sums.shape) == (np.uint64, (rows, len(columns)))
    written = rows if num_rows is None else num_rows
    for column, name in enumerate(columns):
        tensor = file.tensors[prefix + name]
        code = "I64" if name == "recorded_steps" else "F32"
        if name in CHOSEN:
            own = said.get("own_dtypes", {}).get(name, "bfloat16")
            code = CODES[(wanted["dtypes"] or {}).get(name, own)]
        assert tensor.dtype == DTYPES[code], name
        row_shape = {"logits": (v,)}.get(name, (v, d) if name in CHOSEN[:4] else ())
        assert tensor.shape == (rows, *row_shape), name
        assert (listed[name]["dtype"], listed[name]["sizes"]) == (code, list(row_shape))
        assert listed[name]["dims"] == {0: [], 1: ["V"], 2: ["V", "D"]}[len(row_shape)]
        assert set(listed[name]) <= COLUMN_KEYS
        check_first_row(listed[name]["row0"], tensor[0])
        assert listed[name].get("taken") == TAKEN.get(name)
        assert listed[name].get("parameter", wanted["parameter"]) == wanted["parameter"]
        assert listed[name]["meaning"]
        assert [xxhash.xxh3_64_intdigest(row.tobytes()) for row in tensor[:written]] == list(
            sums[:written, column]
        )
        assert not tensor[written:].tobytes().strip(b"\0")
    assert not sums[written:].any()
    steps = file.tensors[prefix + "recorded_steps"][:written]
    assert steps.tolist() == [every * row for row in range(written)]
    for name in ("grads", "momentum", "variance", "logits"):
        assert not file.tensors[prefix + name][0].any()
    for name in ("losses", "losses_f32", "learning_rates", "grad_norms"):
        assert np.isnan(file.tensors[prefix + name][0])
        assert np.isfinite(file.tensors[prefix + name][1:written].astype(np.float64)).all()
    losses = file.tensors[prefix + "losses"]
    assert (file.tensors[prefix + "losses_f32"][1:written].astype(losses.dtype) == losses[1:written]).all()
    return {prefix + name for name in (*columns, "checksums", *said["static_checksums"])}


def check_first_row(kind: str, row: "np.ndarray[Any, Any]") -> None:
    if kind == "zero":
        assert not row.any()
    elif kind == "nan":
        assert np.isnan(row).all()
    else:
        assert (kind, np.isfinite(row.astype(np.float64)).all()) == ("initial", True)


def check_experiment(file: File) -> set[str]:
    """Checks what belongs to no run, and returns its keys."""
    config, runs, tensors = file.metadata["config"], file.metadata["runs"], file.tensors
    assert set(file.metadata["static_checksums"]) == SHARED
    for name, digits in file.metadata["static_checksums"].items():
        assert xxhash.xxh3_64_hexdigest(tensors[name].tobytes()) == digits
    counts = tensors["token_occurrence_counts"]
    live = counts > 0
    expected: dict[str, Any] = {
        **{"n_runs": np.int64(len(runs)), "base_seed": np.int64(runs[0]["seed"])},
        **{"n_live": np.int64(live.sum()), "n_dead": np.int64((~live).sum())},
        "seeds": np.array([run["seed"] for run in runs], np.int64),
        **{"live_mask": live, "dead_mask": ~live, "token_occurrence_counts": counts.astype(np.int64)},
        **{"live_indices": np.nonzero(live)[0], "dead_indices": np.nonzero(~live)[0]},
    }
    for name, key in SCALARS.items():
        group, inner = key.split(".")
        values = [run["swept"].get(key, config[group][inner]) for run in runs]
        same, kind = len(set(values)) == 1, np.int64 if name == "n_steps" else np.float32
        expected[name] = kind(values[0] if same else -1 if name == "n_steps" else np.nan)
    assert counts.shape == (config["model"]["vocab_size"],)
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype, name
        assert tensors[name].tobytes() == value.tobytes(), name
        assert tensors[name].shape == value.shape, name
    return set(expected)
