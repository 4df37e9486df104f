"""Which runs of its experiment a recording lacks."""

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.experiment_record import read_record
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
        record = read_record(ExperimentPaths.find(folder.absolute()))
    except (UserError, RunError):
        return ()
    return tuple(sorted(set(record.indices) - set(recording.runs)))
