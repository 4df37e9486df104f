"""What two recordings say of where they come from, and what of that differs: why their bits may, too."""

import json
from collections.abc import Iterator
from typing import Any

from flannel_pl.dotted import flatten
from flannel_pl.recording.formats.attempts import deciding, fact_word
from flannel_pl.recording.reader import Recording, RunRecording

GROUPS = ("model", "data", "trainer", "recorder")
"""Groups of the config; the others say which runs there are and how they are started."""

FACTS = ("versions", "python", "device", "device_name", "threads", "git")
"""What of an environment is named besides what can decide a bit: a hint is worth a line."""

_ABSENT = object()


def other_origins(a: Recording, run_a: RunRecording, b: Recording, run_b: RunRecording) -> tuple[str, ...]:
    """Names what differs between the origins of two runs: seed, config, data, software, device.

    Args:
        a: Where `run_a` is from.
        run_a: A run.
        b: Where `run_b` is from.
        run_b: Another.

    Returns:
        One line per key, e.g. "model.init_scale: 0.02 in A, 0.03 in B"; one line in all if only one
        of them says anything but its seed, since the notebook's own files do not.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as rec:
        ...     other_origins(rec, rec.run(0), rec, rec.run(1))
        ('seed: 42 in A, 43 in B',)
    """
    seeds = [f"seed: {run_a.seed} in A, {run_b.seed} in B"] if run_a.seed != run_b.seed else []
    ours, theirs = dict(_origin(a, run_a)), dict(_origin(b, run_b))
    if bool(ours) != bool(theirs):
        return (*seeds, f"config, software, device: {'B' if ours else 'A'} does not say")
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    words = [
        f"{key}: {_word(ours.get(key, _ABSENT))} in A, {_word(theirs.get(key, _ABSENT))} in B" for key in keys
    ]
    return (*seeds, *words)


def _origin(recording: Recording, run: RunRecording) -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of all that a recording says."""
    config = run.metadata.get("config") or recording.metadata.get("config", {})
    resolved = dict(flatten({group: config[group] for group in GROUPS if group in config}))
    # Of the data files the content counts, not where they lie.
    yield from ((key, value) for key, value in (resolved | run.swept).items() if not key.endswith("_path"))
    yield from _environments(run)
    provenance = run.metadata.get("provenance") or recording.metadata.get("provenance", {})
    for name, digest in (provenance.get("data") or {}).items():
        yield f"content of the {name}", digest


def _environments(run: RunRecording) -> Iterator[tuple[str, Any]]:
    """Yields the facts of a run's environment; in words, where not all of its rows share one."""
    facts = [
        (
            one.first_row,
            dict(flatten({key: one.environment[key] for key in FACTS if key in one.environment}))
            | deciding(one.environment),
        )
        for one in run.attempts
    ]
    for key in dict.fromkeys(key for _, known in facts for key in known):
        values: list[tuple[int, Any]] = []
        for first_row, known in facts:
            if not values or values[-1][1] != known.get(key):
                values.append((first_row, known.get(key)))
        later = [f"{fact_word(value)} from row {first_row} on" for first_row, value in values[1:]]
        yield key, "; ".join([fact_word(values[0][1]), *later]) if later else values[0][1]


def _word(value: Any) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value)
