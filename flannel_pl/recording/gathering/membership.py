"""Whether a run's recording is the one that an index was made for."""

from collections.abc import Iterator, Mapping
from typing import Any

from flannel_pl.recording.formats.columns import said_columns
from flannel_pl.recording.sameness import decisive, differences

_SHARED = ("config", "header_checksum", "run", "schema")


def said_of_run(metadata: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns what a gathered recording says of one run: the shard's own metadata, but for what is shared."""
    return {**{key: value for key, value in metadata.items() if key not in _SHARED}, "index": index}


def index_contradictions(metadata: Mapping[str, Any], extras: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what a run's recording is not the one that an index was made for.

    Args:
        metadata: What the recording says of itself.
        extras: What the file that belongs to the index says.
    """
    number = metadata.get("run")
    expected = [run for run in extras.get("runs", []) if run["index"] == number]
    if not expected:
        yield f"it is of run {number!r}, which the index has not"
        return
    ours = said_of_run(metadata, expected[0]["index"])
    theirs = {**expected[0], "columns": said_columns(extras, expected[0])}
    if not (theirs["columns"] and "columns" in ours):  # one of them is of schema 1
        ours, theirs = ({**one, "columns": {}} for one in (ours, theirs))
    for key, got, wanted in differences(ours, theirs):
        is_short = not isinstance(got, (dict, list)) and not isinstance(wanted, (dict, list))
        yield f"its {key} is {got!r}, expected {wanted!r}" if is_short else f"its {key} is another"
    swept = ours.get("swept") or {}
    here, there = (decisive(one.get("config") or {}, without=swept) for one in (metadata, extras))
    for key, got, wanted in differences(here, there):
        yield f"its {key} is {got!r}, expected {wanted!r}"
