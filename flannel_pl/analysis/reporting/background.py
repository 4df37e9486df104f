"""What a recording says of itself: what is in it, under which settings, made where by what."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flannel_pl.analysis.measuring.token_sets import token_sets
from flannel_pl.analysis.missing import missing_runs
from flannel_pl.analysis.words import counted
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.info import HIGHLIGHTS, merged
from flannel_pl.recording.reader import Recording, RunRecording
from flannel_pl.recording.rounding import rounding
from flannel_pl.recording.writing.disk import readable_bytes

PROVENANCE = (
    *("command", "created", "git", "versions", "python", "platform"),
    *("device", "device_name", "threads"),
)


@dataclass(frozen=True)
class Background:
    """What is worth knowing of a recording besides its numbers."""

    facts: tuple[tuple[str, str], ...]
    """What was recorded: name, value."""

    provenance: tuple[tuple[str, str], ...]

    config: dict[str, Any]
    """Of the experiment, in groups; empty if the recording does not say."""

    swept: dict[int, dict[str, Any]]
    """Number of a run -> the config keys in which runs differ, and their values."""

    missing_runs: tuple[int, ...]
    """Runs that were asked for and are not in the recording."""

    rounding: dict[str, tuple[int, ...]]
    """What is rounded, or may be -> the runs of which that is so."""


def background_of(recording: Recording) -> Background:
    """Returns what a recording says of itself.

    Args:
        recording: Open.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     background_of(recording).facts[0]
        ('recording', 'runs/quickstart')
    """
    first = recording.run(recording.runs[0])
    config = recording.metadata.get("config") or first.metadata.get("config") or {}
    common = recording.metadata.get("provenance") or {}
    several = [run.attempts[0].environment or common for run in recording]
    provenance = merged([{key: _words(key, one[key]) for key in PROVENANCE if key in one} for one in several])
    return Background(
        facts=tuple(_facts(recording, first, config)),
        provenance=tuple((key, provenance[key]) for key in PROVENANCE if key in provenance),
        config=config,
        swept={run.index: run.swept for run in recording},
        missing_runs=missing_runs(recording),
        rounding=_rounding(recording),
    )


def _rounding(recording: Recording) -> dict[str, tuple[int, ...]]:
    runs_of: dict[str, tuple[int, ...]] = {}
    for run in recording:
        for words in rounding(recording, run):
            runs_of[words] = (*runs_of.get(words, ()), run.index)
    return runs_of


def _facts(recording: Recording, first: RunRecording, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recording", str(recording.path)
    yield "size", f"{readable_bytes(recording.num_bytes)} in {counted(len(recording.files), 'file')}"
    seeds = [run.seed for run in recording]
    seen = ", ".join("unknown" if seed is None else str(seed) for seed in dict.fromkeys(seeds))
    yield "runs", f"{len(recording)}, seeds {seen}"
    swept = {key: None for run in recording for key in run.swept}
    for key in swept:
        values = dict.fromkeys(str(run.swept[key]) for run in recording if key in run.swept)
        yield f"swept: {key}", ", ".join(values)
    yield "rows", _rows(recording)
    for run in recording:
        if (ended := EarlyEnd.of(run.metadata)) is not None:
            yield f"run {run.index}", str(ended)
    yield "tensors", ", ".join(f"{name} {first.tensor(name).dtype}" for name in first.names)
    yield "tokens", _tokens(recording, first)
    for group, keys in HIGHLIGHTS.items():
        given = [key for key in keys if key in config.get(group, {}) and f"{group}.{key}" not in swept]
        found = [f"{key} {config[group][key]}" for key in given]
        if found:
            yield group, ", ".join(found)


def _rows(recording: Recording) -> str:
    lengths = [run.num_rows for run in recording]
    steps_R = max((run.steps for run in recording), key=len)
    every = int(steps_R[1] - steps_R[0]) if len(steps_R) > 1 else 1
    spacing = "every step" if every == 1 else f"every {every} steps"
    count = f"{min(lengths):,} to {max(lengths):,}" if min(lengths) != max(lengths) else f"{lengths[0]:,}"
    return f"{count} a run, steps {steps_R[0]} to {steps_R[-1]}, {spacing}"


def _tokens(recording: Recording, run: RunRecording) -> str:
    if not run.has_token_rows:
        return "their embeddings are not recorded"
    sets, _ = token_sets(recording, run)
    parts = [counted(len(sets["all"]), "token")]
    for name, words in (("dead", "never occur in the text (dead)"), ("live", "do (live)")):
        if name in sets:
            parts.append(f"{len(sets[name]):,} {words}")
    return ", ".join(parts)


def _words(key: str, value: Any) -> str:
    if key == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)
