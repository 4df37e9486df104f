"""How a recording that is begun but not finished comes to its end: that depends on who began it."""

from pathlib import Path

from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import RunPaths
from flannel_pl.recording.formats.files import read_header


def is_from_python(partial: Path) -> bool:
    """Tells whether an unfinished recording says that no `flannel-pl fit` began it."""
    try:
        said = read_header(partial).flannel
    except (RunError, UserError):  # whatever is wrong with it is said elsewhere
        return False
    return bool(said) and "config" not in said


def how_it_goes_on(partial: Path) -> str:
    """Returns what finishes an unfinished recording of one run.

    Args:
        partial: The recording.
    """
    known = RunPaths(partial.parent).checkpoints()
    if not is_from_python(partial):
        there = "goes on with this run from its last checkpoint"
        return f"flannel-pl fit {there if known else 'begins this run anew, since it has no checkpoint yet'}"
    if not known:
        return (
            "the script that began it goes on from a checkpoint, if it has made one elsewhere, since none "
            "lies beside it; else record into another folder. What is safe of it is read with "
            "open_recording(folder, unfinished=True)"
        )
    return f"the script that began it goes on with Trainer.fit(..., ckpt_path={str(known[0][2])!r})"
