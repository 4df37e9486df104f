"""Says what is in a recording, without reading more of it than headers and scalars."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.recording.formats.attempts import deciding, fact_word
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.schema import CONFIG_SCALARS, RECORDED_TOKENS, SKIPPED
from flannel_pl.recording.formats.specs import NUMPY_DTYPES, TensorSpec
from flannel_pl.recording.reader import Recording, RunRecording, open_recording
from flannel_pl.recording.rounding import rounding
from flannel_pl.recording.writing.disk import readable_bytes

HIGHLIGHTS = {
    "trainer": ("precision", "max_steps", "accelerator", "gradient_clip_val"),
    "model": (
        *("param_dtype", "vocab_size", "hidden_dim", "n_layer", "n_head", "max_seq_len", "init_scale"),
        *("learning_rate", "lr_schedule", "weight_decay", "adam_beta1", "adam_beta2"),
    ),
    "data": ("batch_size", "target_offset"),
    "recorder": ("tokens", "every_n_steps"),
}
"""Config keys worth showing, by group."""

MAX_DIFFERENT = 4
"""Of the values that runs have of one thing, so many are shown."""

_WIDTH = 24


def info_verb(path: Path) -> None:
    """Shows what is in a recording: keys, shapes, dtypes, rows, seeds, provenance.

    Args:
        path: A recording (.safetensors), an index (.safetensors.index.json), a run's or experiment's folder.
    """
    print(describe_recording(path))


def describe_recording(path: str | Path) -> str:
    """Returns what `info` prints.

    Args:
        path: Anything `open_recording` takes.

    Raises:
        UserError: If there is no finished recording.
        RunError: If it cannot be read.
    """
    with open_recording(path) as recording:
        sections = [_overview(recording), *_runs(recording), _shared(recording), *_background(recording)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _overview(recording: Recording) -> list[str]:
    num_bytes = recording.num_bytes
    files = f" in {len(recording.files)} files" if len(recording.files) > 1 else ""
    schema = recording.metadata.get("schema") or next(
        (run.metadata["schema"] for run in recording if "schema" in run.metadata), None
    )
    lines = [
        str(recording.path),
        _line("size", f"{num_bytes:,} bytes ({readable_bytes(num_bytes)}){files}"),
        _line("schema", "none, not written by flannel-pl" if schema is None else schema),
        _line("runs", len(recording)),
    ]
    for run in recording:
        swept = "".join(f", {key} {value}" for key, value in run.swept.items())
        lines.append(_line(f"run {run.index}", f"seed {run.seed}{swept}, {_rows(run)}"))
        if (ended := EarlyEnd.of(run.metadata)) is not None:
            lines.append(_line("", str(ended)))
        lines += [_line("", words) for words in rounding(recording, run)]
    return lines


def _rows(run: RunRecording) -> str:
    if "recorded_steps" not in run.names:
        return "rows unknown: no recorded_steps"
    steps = run.steps
    tokens = (
        f", {len(run.tensor(RECORDED_TOKENS)):,} tokens of the vocabulary"
        if RECORDED_TOKENS in run.names
        else ""
    )
    if not len(steps):
        return "no rows"
    num_skipped = int(np.count_nonzero(run.tensor(SKIPPED)[:])) if SKIPPED in run.names else 0
    skipped = f", {num_skipped} skipped by the optimizer" if num_skipped else ""
    return f"{len(steps)} rows (steps {steps[0]} to {steps[-1]}{skipped}){tokens}"


def _runs(recording: Recording) -> Iterator[list[str]]:
    """Yields one table for all runs that have the same tensors."""
    groups: dict[tuple[tuple[str, TensorSpec, str], ...], list[int]] = {}
    for run in recording:
        meanings = {name: column.meaning for name, column in run.columns.items()}
        table = tuple(
            (name, recording.tensors[run_prefix(run.index) + name], meanings.get(name, ""))
            for name in run.names
        )
        groups.setdefault(table, []).append(run.index)
    for table, runs in groups.items():
        times = f" x {len(runs)} runs" if len(runs) > 1 else ""
        named = f"run {runs[0]}" if len(runs) == 1 else f"runs {', '.join(map(str, runs))}"
        yield [f"Tensors of {named}{times}", *(_tensor(*row) for row in table)]


def _shared(recording: Recording) -> list[str]:
    of_runs = {run_prefix(run.index) + name for run in recording for name in run.names}
    lines = []
    for key, spec in recording.tensors.items():
        if key not in of_runs:
            swept = CONFIG_SCALARS.get(key) in _swept(recording)
            number = f" = {recording.scalars[key]:.6g}" if key in recording.scalars else ""
            value = " = swept" if swept else number
            lines.append(_tensor(key, spec) + value)
    return ["Tensors of the experiment", *lines] if lines else []


def _swept(recording: Recording) -> set[str]:
    """Returns the config keys of which not all runs have the same value."""
    first = next(iter(recording)).swept if len(recording) else {}
    return {key for run in recording for key, value in run.swept.items() if first.get(key) != value}


def _background(recording: Recording) -> Iterator[list[str]]:
    """Yields what the metadata say of config and provenance; of all runs, where they say it one by one."""
    first = next(iter(recording)).metadata if len(recording) else {}
    config = recording.metadata.get("config") or first.get("config", {})
    swept = _swept(recording)
    shown = [
        _line(name := f"{group}.{key}", "swept" if name in swept else config[group][key])
        for group, keys in HIGHLIGHTS.items()
        for key in (config[group] if "class_path" in config.get(group, {}) else keys)
        if key in config.get(group, {})
    ]
    yield ["Config (excerpt)", *shown] if shown else []
    environment = next(iter(recording)).attempts[0].environment if len(recording) else {}
    common = recording.metadata.get("provenance")
    several = [
        {**run.attempts[0].environment, **(common or run.metadata.get("provenance") or {})}
        for run in recording
    ]
    facts = [_line(key, value) for key, value in merged([dict(_flat(one)) for one in several]).items()]
    yield ["Provenance", *facts] if facts else []
    attempts = list(_attempts(recording, deciding(environment)))
    yield ["Attempts", *attempts] if attempts else []


def _attempts(recording: Recording, before: Mapping[str, Any]) -> Iterator[str]:
    """Yields where which rows were made, and what of that can change bits and is not as it was `before`."""
    for run in recording:
        for number, attempt in enumerate(run.attempts if "attempts" in run.metadata else (), start=1):
            here, facts = attempt.environment, deciding(attempt.environment)
            where = f"{here.get('created')} on {here.get('host')}, {here.get('device')}"
            yield _line(f"run {run.index}, attempt {number}", f"from row {attempt.first_row} on, {where}")
            for key in dict.fromkeys((*before, *facts)):
                if facts.get(key) != before.get(key):
                    yield _line(
                        f"  {key}", f"{fact_word(facts.get(key))}, {fact_word(before.get(key))} before"
                    )
            before = facts


def merged(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what several say of each thing: the value, if all of them say the same, else all that they say.

    Example:
        >>> merged([{"device": "cuda:0", "python": "3.12"}, {"device": "cuda:1", "python": "3.12"}])
        {'device': 'differs: cuda:0, cuda:1', 'python': '3.12'}
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in several for key in one):
        values = [one.get(key) for one in several]
        different = list(dict.fromkeys(map(str, values)))
        more = f", and {len(different) - MAX_DIFFERENT} more" if len(different) > MAX_DIFFERENT else ""
        words = f"differs: {', '.join(different[:MAX_DIFFERENT])}{more}"
        found[key] = values[0] if len(different) == 1 else words
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _tensor(name: str, spec: TensorSpec, meaning: str = "") -> str:
    shape = f"({', '.join(map(str, spec.shape))})"
    dtype = str(NUMPY_DTYPES[spec.dtype])
    line = f"  {name:<{_WIDTH}} {dtype:<9} {shape:<20} {readable_bytes(spec.num_bytes):>12}"
    return f"{line}  {meaning}".rstrip()


def _line(name: str, value: object) -> str:
    return f"  {name:<{_WIDTH}} {value}"
