"""In which environment which rows of a recording were made: one attempt after the other.

The metadata of a run list its attempts. Each has the first row that it made, and of its environment what is
not as in the attempt before, so that a run may be started many times and its header stays short.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flannel_pl.dotted import flatten

DECIDES_BITS = (
    *("versions.torch", "versions.lightning", "versions.transformers", "versions.numpy", "python", "libc"),
    *("source", "own_source", "device_name", "threads", "settings", "variables", "cuda"),
)
"""What of an environment can change the bits of a row, besides `cpu` where no GPU is used. Host, kernel,
commit, command and time cannot; nor can the number of a device, beside others of its model."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run, as far as there are rows of it."""

    first_row: int
    environment: dict[str, Any]
    """In what it was trained: what `training.environment` says; less in an older file."""


def attempts_of(metadata: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """Returns the attempts of a run, the first one first, each with its whole environment.

    Args:
        metadata: What a file says of the run. An older one says one environment, under `provenance`.
    """
    environment = {key: value for key, value in (metadata.get("provenance") or {}).items() if key != "data"}
    attempts = []
    for entry in metadata.get("attempts") or [{"first_row": 0}]:
        environment = environment | entry.get("environment", {})
        attempts.append(Attempt(entry["first_row"], environment))
    return tuple(attempts)


def with_attempt(
    metadata: Mapping[str, Any], first_row: int, environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the list of attempts in a run's metadata with one more at its end.

    Args:
        metadata: What the file says of the run so far.
        first_row: First row of the new attempt. What attempts made from there on is made anew: those of which
            no row is left are dropped.
        environment: The new attempt's.
    """
    entries: list[dict[str, Any]] = metadata.get("attempts") or [{"first_row": 0}]
    entries = [entry for entry in entries if entry["first_row"] < first_row]
    if not entries:
        return [{"first_row": first_row, "environment": dict(environment)}]
    before = attempts_of({**metadata, "attempts": entries})[-1].environment
    new = {key: value for key, value in environment.items() if before.get(key, _ABSENT) != value}
    return [*entries, {"first_row": first_row, "environment": new}]


def environment_changes(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what differs between two environments and can change bits.

    Args:
        there: The environment rows were made in.
        now: Another. A fact that only one of them knows of is not compared.

    Returns:
        One line per difference.
    """
    ours, theirs = _facts(now), _facts(there)
    common = [name for name in ours if name in theirs]
    old, new = (_flat({name: facts[name] for name in common}) for facts in (theirs, ours))
    return [
        f"{key}: {fact_word(old.get(key))} there, {fact_word(new.get(key))} now"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]


def deciding(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted key -> value of what can change bits."""
    return _flat(_facts(environment))


def _facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    names = DECIDES_BITS if environment.get("cuda") else (*DECIDES_BITS, "cpu")
    facts = {name: _look_up(environment, name) for name in names}
    if "cpu" not in environment and not str(environment.get("device", "")).startswith("cuda"):
        facts["device_name"] = _ABSENT  # an older file has a word there that every such processor shares
    return {name: value for name, value in facts.items() if value is not _ABSENT}


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(dict(facts)) if value != {}}


def _look_up(environment: Mapping[str, Any], dotted_key: str) -> Any:
    value: Any = environment
    for part in dotted_key.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def fact_word(value: object) -> str:
    """Returns what a fact of an environment is called."""
    return "nothing" if value is None else str(value)


_ABSENT = object()
