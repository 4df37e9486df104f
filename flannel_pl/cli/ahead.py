"""What can begin before a command is understood: the imports of the processes that runs are forked from."""

import contextlib
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from flannel_pl.config import ExperimentConfig, is_inline
from flannel_pl.errors import UserError
from flannel_pl.launch.devices import free_memory, num_cores
from flannel_pl.launch.fork_server import start_fork_server, start_method
from flannel_pl.launch.memory import LIBRARY_BYTES
from flannel_pl.small_files import read_small


def prepare_for_several_runs(words: list[str]) -> None:
    """Has a second core import what the runs need while this one imports it for the launcher.

    Not in a job that a scheduler starts for one run, nor where the imports have been paid for, nor for an
    experiment that is begun: perhaps nothing of it is left to train.
    """
    if "FLANNEL_PL_ATTEMPT" in os.environ or "torch" in sys.modules or is_begun(words):
        return
    free = free_memory()
    is_tight = free is not None and free.amount < 2 * LIBRARY_BYTES
    if start_method() == "forkserver" and num_cores() > 1 and not is_tight:
        with contextlib.suppress(UserError):  # which a single run need not care about
            start_fork_server("flannel_pl.training.worker")


def is_begun(words: list[str]) -> bool:
    """Guesses whether the experiment's folder is there. The parser would know, but takes all the imports."""
    settings: dict[str, Any] = {"output_dir": ExperimentConfig.output_dir, "name": ExperimentConfig.name}
    try:
        for word, following in itertools.pairwise([*words, ""]):
            option, is_joined, value = word.partition("=")
            value = value if is_joined else following
            if option in ("--config", "-c"):
                text = value if is_inline(value) else read_small(Path(value))
                settings |= yaml.safe_load(text).get("experiment", {})
            elif option in ("--experiment.output_dir", "--experiment.name"):
                settings[option.removeprefix("--experiment.")] = value
        return Path(str(settings["output_dir"]), str(settings["name"])).expanduser().is_dir()
    except Exception:  # whatever is wrong with a config, its parser says it better
        return False
