"""`fit` and `plan` from Python: the command line's, with its words as keyword arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flannel_pl.api.child import call
from flannel_pl.api.experiment import Experiment
from flannel_pl.api.words import command_words
from flannel_pl.errors import RunError

Source = str | Path | Mapping[str, Any] | None
"""A YAML file, its content as nested dicts, or nothing."""


def fit(config: Source = None, *, progress: bool = True, **changes: Any) -> Experiment:
    """Trains every run of an experiment that is not finished, then gathers the recordings.

    What `flannel-pl fit` does, in a process of its own: nothing of this program's torch or random numbers is
    touched. The same call again goes on with what was interrupted.

    Args:
        config: A YAML file; the name of a config that comes with flannel-pl, e.g. "flannel3"; or the content
            of one as nested dicts. None = the defaults, which are the notebook's.
        progress: Whether to show how it goes: as a table that moves on a terminal and in a notebook, in
            lines elsewhere.
        **changes: What to override: a group with its keys, `trainer={"max_steps": 50}`, or one key, with two
            underscores for the dot, `trainer__max_steps=50`. A class stands for its import path,
            `model=my_lab.MyModule`.

    Returns:
        The experiment in its folder.

    Raises:
        UserError: If something is wrong with the config, the data or the folder; before anything is trained.
        RunError: If a run has failed, or the disk or the launcher has.
        KeyboardInterrupt: On Ctrl-C or a kernel's interrupt, once everything so far is on the disk.

    Example:
        >>> import flannel_pl
        >>> experiment = flannel_pl.fit("quickstart", trainer__max_steps=50)  # doctest: +SKIP
        >>> experiment.recording().run(0)["E"].values[10:20]  # doctest: +SKIP
    """
    folder = call("fit", command_words(config, changes), progress=progress).facts.get("folder")
    if folder is None:  # the temporary folder was emptied meanwhile
        raise RunError("it is finished; open it with flannel_pl.Experiment(FOLDER), which it could not tell")
    return Experiment(folder)


def plan(config: Source = None, **changes: Any) -> str:
    """Returns what `fit` with the same arguments would do, in words, and does nothing.

    Args:
        config: See `fit`.
        **changes: See `fit`.

    Raises:
        UserError: If `fit` would refuse.
        RunError: If what the folder says cannot be read.
    """
    return call("plan", command_words(config, changes), progress=False, captured=True).output.rstrip("\n")
