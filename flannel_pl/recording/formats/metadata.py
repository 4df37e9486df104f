"""The metadata string in a header: how it is written, and read without trusting it.

It is JSON, and one of its keys is a checksum of the whole header, itself included but for its own digits.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import xxhash

METADATA_KEY = "flannel"
"""The only key of a header's `__metadata__`: with several, their order differs from process to process."""

MAX_DEPTH = 50
"""How deep the metadata may be nested: far more than a config is, far less than what ends a recursion."""

CHECKSUM_KEY = "header_checksum"
NO_CHECKSUM = "0" * 16  # stands for the digits while they are computed


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Returns `metadata` as sorted JSON, with room for the header's checksum: equal content, equal bytes.

    Raises:
        ValueError: If it holds NaN or an infinity, which JSON has no word for.
    """
    return json.dumps({**metadata, CHECKSUM_KEY: NO_CHECKSUM}, sort_keys=True, allow_nan=False)


def header_checksum(header: bytes, digits: str) -> str:
    """Returns the xxh3-64 of a header with zeros in place of the checksum that it holds itself."""
    return xxhash.xxh3_64_hexdigest(header.replace(checksum_field(digits), checksum_field(NO_CHECKSUM)))


def checksum_field(digits: str) -> bytes:
    """Returns the checksum's bytes in the header: JSON in a string of JSON."""
    return json.dumps(json.dumps({CHECKSUM_KEY: digits})[1:-1])[1:-1].encode()


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Checks that what is there has the types of docs/format.md, so that no reader has to.

    Raises:
        ValueError: Names what has not.
    """
    for name, kinds in _METADATA_TYPES.items():
        if name in metadata and type(metadata[name]) not in kinds:
            raise ValueError(f"its metadata have {name} {short(metadata[name])}")
    for name in ("num_rows", "every_n_steps"):
        if metadata.get(name, 1) < 1:
            raise ValueError(f"its metadata have {name} {metadata[name]}, expected at least 1")
    ended = {name: type(value) for name, value in metadata.get("ended", {}).items()}
    planned = type(None) if ended.get("planned_steps") is type(None) else int
    if ended and ended != {"step": int, "planned_steps": planned, "reason": str}:
        raise ValueError(
            f"its metadata have ended {short(metadata['ended'])}, expected step, planned_steps, reason"
        )
    for attempt in metadata.get("attempts", []):
        first_row = attempt.get("first_row") if isinstance(attempt, dict) else None
        if type(first_row) is not int or type(attempt.get("environment", {})) is not dict:
            raise ValueError(
                f"its metadata have the attempt {short(attempt)}, expected first_row, environment"
            )
    columns, static = metadata.get("checksum_columns", []), metadata.get("static_checksums", {})
    if not all(isinstance(text, str) for text in (*columns, *static.values())):
        raise ValueError("its metadata have checksum_columns or static_checksums that are no text")
    for name, column in metadata.get("columns", {}).items():
        if not isinstance(column, dict) or not all(map(_is_of_column, column.items())):
            raise ValueError(f"its metadata have the column {name} {short(column)}")
    groups = {name: metadata.get("config", {}).get(name, {}) for name in _CONFIG_GROUPS}
    groups["data hashes"] = metadata.get("provenance", {}).get("data") or {}
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ValueError(f"its metadata have {name} {short(group)}, expected an object")
    for run in metadata.get("runs", []):
        if not isinstance(run, dict) or type(run.get("index")) is not int:
            raise ValueError(f"its metadata have the run {short(run)}, expected one with an index")
        check_metadata({key: value for key, value in run.items() if key != "runs"})


def _is_of_column(item: tuple[str, Any]) -> bool:
    """Tells whether a key of a column's description has a value of its type; others are not for us."""
    key, value = item
    if key in ("dims", "sizes"):
        kind: type = str if key == "dims" else int
        return isinstance(value, list) and all(type(one) is kind for one in value)
    if key == "labels":
        return isinstance(value, dict) and all(isinstance(names, list) for names in value.values())
    return key not in _COLUMN_TEXTS or isinstance(value, str)


_COLUMN_TEXTS = ("dtype", "taken", "row0", "meaning", "parameter", "quantity")

_CONFIG_GROUPS = ("experiment", "trainer", "model", "data", "recorder")

_METADATA_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("schema", "run", "index", "num_rows", "every_n_steps"), (int,)),
    **dict.fromkeys(
        ("swept", "config", "provenance", "static_checksums", "own_dtypes", "ended", "columns"), (dict,)
    ),
    **dict.fromkeys(("checksum_columns", "runs", "attempts"), (list,)),
    **dict.fromkeys(("name", CHECKSUM_KEY), (str,)),
    "seed": (int, type(None)),
}


def parse_json(text: str) -> dict[str, Any]:
    """Returns the object that `text` holds.

    Raises:
        ValueError: If it holds none, or one that JSON does not allow: repeated keys, NaN, too deep nesting,
            or numbers that no 64 bits hold.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {short(value)}, expected an object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return value
        inner = (x.values() if isinstance(x, dict) else x for x in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    raise ValueError("its JSON is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is there twice among {short([key for key, _ in pairs])}")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it has the number {short(constant)}")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        _refuse(digits)
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):  # 1e999
        _refuse(digits)
    return float(digits)


def num_marks(text: bytes) -> int:
    """Returns how many braces, brackets and commas open or separate what JSON lists."""
    return sum(text.count(mark) for mark in (b"{", b"[", b","))


def short(value: object) -> str:
    """Returns a value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
