"""Keeps what was measured, so that a report reads only those runs again that have changed.

A cache file has a fingerprint of what it was measured from: the rows' checksums (where a recording has none,
size and time of its files), the masks, and the code that measured; and at its end a checksum of its bytes.
Whatever is damaged or belongs to something else is measured anew.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import flannel_pl
from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.analysis.measuring.results import Cloud, RunMeasures
from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.reader import Recording
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.small_files import open_regular

MEASURING = ("metrics", "analysis/measuring")
"""Folders of the code that decides what is measured; the rest only shows it."""

_FACTS = "facts"
_CHECKSUM_BYTES = 8


def fingerprint(recording: Recording, index: int) -> str:
    """Returns what changes whenever the measures of a run would.

    Args:
        recording: Where the run is from.
        index: Its number.

    Returns:
        A hash, hexadecimal.
    """
    run = recording.run(index)
    digest = hashlib.sha256(_code())
    digest.update(
        repr([(name, run.tensor(name).shape, run.tensor(name).dtype) for name in run.names]).encode()
    )
    digest.update(repr((run.seed, run.swept)).encode())
    config = run.metadata.get("config") or recording.metadata.get("config") or {}
    # Not all of it: more seeds for an experiment change nothing for the runs that are there.
    digest.update(json.dumps([config.get(group) for group in ("model", "trainer")], sort_keys=True).encode())
    for name in ("recorded_steps", "recorded_tokens", "checksums"):
        if name in run.names:
            digest.update(np.asarray(run.tensor(name)).tobytes())
    if "checksums" not in run.names:
        stats = [path.stat() for path in recording.files]
        digest.update(repr([(stat.st_size, stat.st_mtime_ns) for stat in stats]).encode())
    try:
        for name, mask in sorted(recording.masks.items()):
            digest.update(name.encode() + np.asarray(mask).tobytes())
    except UserError:
        digest.update(b"no masks")
    return digest.hexdigest()


def save_run(path: Path, fingerprint: str, measures: RunMeasures) -> None:
    """Writes what was measured of one run.

    Raises:
        RunError: If the disk fails.
    """
    arrays: dict[str, Array] = {"steps": measures.steps_R, "skipped": measures.skipped_R}
    groups = {"series": measures.series, "tokens": measures.tokens}
    for group, sets in groups.items():
        arrays |= {f"{group}/{one}/{name}": x for one, named in sets.items() for name, x in named.items()}
    arrays |= {f"scalars/{name}": array for name, array in measures.scalars.items()}
    arrays |= {f"histogram/{name}": array for name, array in measures.histogram.items()}
    facts = {"run": measures.run, "label": measures.label, "left_out": measures.left_out}
    facts["num_tokens"] = measures.num_tokens
    _save(path, fingerprint, arrays, facts)


def load_run(path: Path, fingerprint: str) -> RunMeasures | None:
    """Returns what was measured of one run; None if that is not there, damaged, or of something else."""
    found = _load(path, fingerprint)
    if found is None:
        return None
    arrays, facts = found
    tree: dict[str, Any] = {"series": {}, "tokens": {}, "scalars": {}, "histogram": {}}
    for key, array in arrays.items():
        *groups, name = key.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = array
    return RunMeasures(steps_R=tree.pop("steps"), skipped_R=tree.pop("skipped"), **tree, **facts)


def save_divergence(path: Path, fingerprints: Iterable[str], pairs: Mapping[str, Divergence]) -> None:
    """Writes how far runs are from each other.

    Raises:
        RunError: If the disk fails.
    """
    arrays: dict[str, Array] = {}
    for name, one in pairs.items():
        arrays |= {f"{name}/distance": one.distance_PR, f"{name}/evolution": one.evolution_NR}
    facts = {name: [list(pair) for pair in one.pairs] for name, one in pairs.items()}
    _save(path, _joined(fingerprints), arrays, facts)


def load_divergence(path: Path, fingerprints: Iterable[str]) -> dict[str, Divergence] | None:
    """Returns how far runs are from each other; None if that is not there, damaged, or of something else."""
    found = _load(path, _joined(fingerprints))
    if found is None:
        return None
    arrays, facts = found
    return {
        name: Divergence(
            pairs=tuple((first, second) for first, second in pairs),
            distance_PR=arrays[f"{name}/distance"],
            evolution_NR=arrays[f"{name}/evolution"],
        )
        for name, pairs in facts.items()
    }


def save_cloud(path: Path, fingerprint: str, cloud: Cloud) -> None:
    """Writes where tokens of a run are.

    Raises:
        RunError: If the disk fails.
    """
    arrays = {field.name: getattr(cloud, field.name) for field in fields(cloud)}
    facts = {name: arrays.pop(name) for name in ("run", "label", "fitted_step")}
    _save(path, fingerprint, arrays, facts)


def load_cloud(path: Path, fingerprint: str) -> Cloud | None:
    """Returns where tokens of a run are; None if that is not there, damaged, or of something else."""
    found = _load(path, fingerprint)
    if found is None:
        return None
    values: dict[str, Any] = {**found[0], **found[1]}
    return Cloud(**values)


def _joined(fingerprints: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()


def _code() -> bytes:
    """Returns a hash of the code that measures, which may measure something else tomorrow."""
    digest, package = hashlib.sha256(), Path(flannel_pl.__file__).parent
    for file in sorted(file for folder in MEASURING for file in (package / folder).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _save(path: Path, fingerprint: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    text = json.dumps({"fingerprint": fingerprint, **facts}).encode()
    content = io.BytesIO()
    np.savez_compressed(content, **{_FACTS: np.frombuffer(text, np.uint8), **arrays})  # type: ignore[arg-type]
    write_file(path, content.getvalue() + xxhash.xxh3_64_digest(content.getbuffer()))


def _load(path: Path, fingerprint: str) -> tuple[dict[str, Array], dict[str, Any]] | None:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError:
        return None
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(content) != checksum:
        return None
    with np.load(io.BytesIO(content)) as file:
        arrays = {key: file[key] for key in file.files}
    facts = json.loads(arrays.pop(_FACTS).tobytes())
    return (arrays, facts) if facts.pop("fingerprint") == fingerprint else None
