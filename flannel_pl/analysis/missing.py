"""Which runs of its experiment a recording lacks."""

import json

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.reader import Recording


def missing_runs(recording: Recording) -> tuple[int, ...]:
    """Returns the runs that were asked for and are not in a recording: not begun, not finished, or broken.

    Args:
        recording: Open.

    Returns:
        Their numbers, ascending. None if it is a single run's, or lies in no experiment's folder.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     missing_runs(recording)
        ()
    """
    folder = recording.path if recording.path.is_dir() else recording.path.parent
    try:
        record = json.loads(ExperimentPaths.find(folder.absolute()).record.read_text(encoding="utf-8"))
        asked = {int(run["index"]) for run in record["runs"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(sorted(asked - set(recording.runs)))
