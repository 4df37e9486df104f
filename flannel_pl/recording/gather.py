"""Joins the finished shards of an experiment: copied into one file, or named by an index."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.disk import copy_range, new_file, readable_bytes, write_at
from flannel_pl.recording.layout import FileLayout, TensorSpec, dump_metadata, plan_layout, read_layout
from flannel_pl.recording.reader import MASK_NAMES
from flannel_pl.recording.schema import SCHEMA_VERSION, static_checksum
from flannel_pl.recording.tensors import Array, TensorFile

Progress = Callable[[int, int], object]
"""Called with (bytes done, bytes in all)."""

Extras = dict[str, Array]
"""The experiment-wide tensors of a gathered recording, by key."""


@dataclass(frozen=True)
class _Shard:
    """One run's finished recording."""

    index: int
    path: Path
    layout: FileLayout

    @property
    def prefix(self) -> str:
        return f"run_{self.index}_"

    @property
    def keys(self) -> dict[str, str]:
        """Key in the gathered recording -> key in the shard."""
        return {key if key.startswith(self.prefix) else self.prefix + key: key for key in self.layout.tensors}


def gather(
    folder: str | Path, *, mode: Literal["single", "index"] | None = None, progress: Progress | None = None
) -> Path:
    """Gathers the shards of a finished experiment, replacing what was gathered before.

    Args:
        folder: The experiment's folder, with `experiment.json`, the masks and `run_*/recording.safetensors`.
        mode: "single" copies everything into `NAME.safetensors`; "index" writes `NAME.safetensors.index.json`
            in Hugging Face's sharded convention, plus a small file for scalars and masks, and leaves the
            tensors where they are. None takes `experiment.gather` of the experiment.
        progress: Called while bytes are copied.

    Returns:
        The gathered file or the index.

    Raises:
        UserError: If the folder is no experiment, its config says not to gather, or the disk is too small.
        RunError: If runs are missing, a shard belongs to another experiment or is damaged, or the disk fails.
    """
    paths = ExperimentPaths(Path(folder).resolve())
    record = _read_record(paths)
    chosen = mode or record["config"]["experiment"]["gather"]
    if chosen not in ("single", "index"):
        raise UserError(
            f"experiment.gather is {chosen!r}; say --mode single or --mode index to gather {folder}"
        )
    shards = _find_shards(paths, record)
    extras = _extras(paths, record)
    metadata = _metadata(record, shards, extras)
    if chosen == "index":
        return _write_index(paths, shards, extras, metadata)
    return _write_single(paths, shards, extras, metadata, progress or (lambda done, total: None))


def gather_verb(folder: Path, mode: Literal["single", "index"] | None = None) -> None:
    """Joins the recordings of an experiment's runs into one.

    Args:
        folder: The experiment's folder, e.g. runs/flannel3.
        mode: single = one file with everything; index = a small file that says which run's file has what.
            Default: experiment.gather of the experiment.
    """
    # Here, not at the top: training gathers too, without a progress bar of its own.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("Gathering"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Gathering")
        path = gather(
            folder, mode=mode, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"{path} ({readable_bytes(path.stat().st_size)})")


def _read_record(paths: ExperimentPaths) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(paths.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{paths.folder} is no experiment's folder: it has no {paths.record.name}. "
            "Give the folder that holds run_0, run_1, ..."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {paths.record}: {error}") from error
    return record


def _find_shards(paths: ExperimentPaths, record: Mapping[str, Any]) -> list[_Shard]:
    missing = [run["index"] for run in record["runs"] if not paths.run(run["index"]).recording.exists()]
    if missing:
        raise RunError(
            f"{paths.folder} has no finished recording of run {', '.join(map(str, missing))} "
            f"({len(missing)} of {len(record['runs'])} runs). "
            "Run flannel-pl fit again to finish them, then gather."
        )
    shards = []
    for run in record["runs"]:
        path = paths.run(run["index"]).recording
        shard = _Shard(run["index"], path, read_layout(path))
        wrong = list(_strange(shard.layout.flannel, run, record["config"]))
        if wrong:
            raise RunError(
                f"{path} does not belong to this experiment: {'; '.join(wrong)}. "
                "Move it away and record that run again."
            )
        shards.append(shard)
    return shards


def _strange(metadata: Mapping[str, Any], run: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what a shard's metadata contradict the experiment that it is to be part of."""
    for name, expected in (
        ("schema", SCHEMA_VERSION),
        ("run", run["index"]),
        ("seed", run["seed"]),
        ("swept", run["swept"]),
    ):
        if metadata.get(name) != expected:
            yield f"its {name} is {metadata.get(name)!r}, expected {expected!r}"
    theirs = metadata.get("config", {})
    for group in ("model", "data", "recorder"):
        yield from _differences(theirs.get(group, {}), config.get(group, {}), f"{group}.", run["swept"])
    steps = {"max_steps": config["trainer"]["max_steps"]}
    yield from _differences(
        {"max_steps": theirs.get("trainer", {}).get("max_steps")}, steps, "trainer.", run["swept"]
    )


def _differences(
    got: Mapping[str, Any], expected: Mapping[str, Any], prefix: str, swept: Mapping[str, Any]
) -> Iterator[str]:
    """Yields each differing key; not swept ones, and not paths, which differ from machine to machine."""
    for key in sorted(got.keys() | expected.keys()):
        name = prefix + key
        if got.get(key) != expected.get(key) and name not in swept and not name.endswith("_path"):
            yield f"its {name} is {got.get(key)!r}, expected {expected.get(key)!r}"


def _extras(paths: ExperimentPaths, record: Mapping[str, Any]) -> Extras:
    """Returns the notebook's ten scalars, the seeds and the masks."""
    if not paths.masks.exists():
        raise RunError(
            f"{paths.masks} is missing; copy the masks the experiment was trained with there, then gather."
        )
    file = TensorFile(paths.masks)
    try:
        absent = [name for name in MASK_NAMES if name not in file.layout.tensors]
        if absent:
            raise RunError(f"{paths.masks} has no {', '.join(absent)}; expected {', '.join(MASK_NAMES)}")
        masks = {name: file.read(name) for name in MASK_NAMES}
    finally:
        file.close()
    seeds = [run["seed"] for run in record["runs"]]
    integers = {
        "n_runs": len(seeds),
        "base_seed": seeds[0],
        "n_steps": record["config"]["trainer"]["max_steps"],
        "n_live": int(masks["live_mask"].sum()),
        "n_dead": int(masks["dead_mask"].sum()),
    }
    model = record["config"]["model"]
    floats = ("init_scale", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2")
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(model[name], np.float32) for name in floats},
        "seeds": np.array(seeds, np.int64),
        **masks,
    }


def _metadata(record: Mapping[str, Any], shards: list[_Shard], extras: Extras) -> str:
    """Returns the metadata string: the experiment's record, and of each shard what is its own."""
    runs = []
    for run, shard in zip(record["runs"], shards, strict=True):
        shared = ("config", "run", "schema")
        own = {key: value for key, value in shard.layout.flannel.items() if key not in shared}
        runs.append({**own, "index": run["index"], "seed": run["seed"], "swept": run["swept"]})
    return dump_metadata(
        {
            "schema": SCHEMA_VERSION,
            "name": record["name"],
            "config": record["config"],
            "provenance": record["provenance"],
            "runs": runs,
            "static_checksums": {name: static_checksum(array) for name, array in extras.items()},
        }
    )


def _write_single(
    paths: ExperimentPaths, shards: list[_Shard], extras: Extras, metadata: str, progress: Progress
) -> Path:
    specs = {name: TensorSpec.of(array) for name, array in extras.items()}
    for shard in shards:
        specs |= {key: shard.layout.tensors[inner] for key, inner in shard.keys.items()}
    layout = plan_layout(specs, metadata=metadata)
    _check_space(paths.gathered, layout.total_bytes)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, layout.total_bytes)

    with new_file(paths.gathered, layout.total_bytes) as fd:
        write_at(fd, layout.header, 0)
        advance(len(layout.header))
        for name, array in extras.items():
            write_at(fd, array.tobytes(), layout.offsets[name])
            advance(array.nbytes)
        for shard in shards:
            _copy_shard(shard, fd, layout, advance)
    return paths.gathered


def _copy_shard(shard: _Shard, fd: int, layout: FileLayout, advance: Callable[[int], None]) -> None:
    source_fd = os.open(shard.path, os.O_RDONLY)
    try:
        for key, inner in shard.keys.items():
            copy_range(
                source_fd,
                fd,
                source_offset=shard.layout.offsets[inner],
                target_offset=layout.offsets[key],
                num_bytes=shard.layout.tensors[inner].num_bytes,
                advance=advance,
            )
    finally:
        os.close(source_fd)


def _check_space(path: Path, need_bytes: int) -> None:
    have_bytes = shutil.disk_usage(path.parent).free
    if need_bytes > have_bytes:
        raise UserError(
            f"Cannot gather into {path}: need {readable_bytes(need_bytes)}, "
            f"have {readable_bytes(have_bytes)} free. Free some space, move the experiment to another disk, "
            "or train with experiment.gather index, which copies nothing."
        )


def _write_index(paths: ExperimentPaths, shards: list[_Shard], extras: Extras, metadata: str) -> Path:
    bare = [shard for shard in shards if any(key != inner for key, inner in shard.keys.items())]
    if bare:
        raise RunError(
            f"{bare[0].path} has keys without {bare[0].prefix}, "
            "and an index can only name keys as they are in the file. "
            "Gather with --mode single, or set experiment.gather to index before training."
        )
    layout = plan_layout({name: TensorSpec.of(array) for name, array in extras.items()}, metadata=metadata)
    with new_file(paths.index_extras, layout.total_bytes) as fd:
        write_at(fd, layout.header, 0)
        for name, array in extras.items():
            write_at(fd, array.tobytes(), layout.offsets[name])
    weight_map = dict.fromkeys(extras, paths.index_extras.name)
    for shard in shards:
        weight_map |= dict.fromkeys(shard.keys, shard.path.relative_to(paths.folder).as_posix())
    total_size = sum(
        spec.num_bytes for part in (layout, *(s.layout for s in shards)) for spec in part.tensors.values()
    )
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True).encode()
    with new_file(paths.index, len(text)) as fd:
        write_at(fd, text, 0)
    return paths.index
