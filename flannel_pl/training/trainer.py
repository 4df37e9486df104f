"""The Trainer of one run, made from a config's `trainer` group; and which key is wrong if that fails."""

import copy
import inspect
import json
import logging
import math
import pkgutil
import re
import signal
import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flannel_pl.config import Config
from flannel_pl.errors import Interrupted, RunError, UserError, foreign_place, raised_at
from flannel_pl.experiment import Slot, local_path
from flannel_pl.training.classes import has_corpus, note_source_of
from flannel_pl.training.cli import FlannelCLI, built
from flannel_pl.training.metrics_log import MetricsLog

FOLDER_ARGUMENTS = {"save_dir", "dirpath", "root_dir", "folder"}
"""What loggers, checkpoint callbacks, profilers and recorders call the folder they write to."""

Result = TypeVar("Result")

MISTAKES = (MisconfigurationException, ImportError, TypeError, ValueError, LookupError, AttributeError)
"""What a setting that cannot work raises, and would raise again at the next attempt."""

_NO_MISTAKES = (UserError, RunError, Interrupted, OSError, MemoryError)
"""What says itself whose fault it is."""


def build(config: Config, folder: Path, slot: Slot, *, progress_bar: bool | None = None) -> FlannelCLI:
    """Makes Trainer, module and data of one run; nothing of it is used yet, and nothing is written.

    Args:
        config: The run's complete config.
        folder: Where everything of the run goes.
        slot: Device and number of threads.
        progress_bar: Whether Lightning shows one, unless a callback is one; None = as the config says.
    """
    _silence_noise()
    settings = _run_settings(dict(config.trainer.arguments), folder, slot, progress_bar)
    cli = built({**config.content, "trainer": settings})
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        note_source_of(type(callback))
    limits = ("max_epochs", "limit_train_batches", "overfit_batches")
    data: Any = cli.datamodule
    if has_corpus(data) and all(settings[key] in (None, 0.0) for key in limits):
        # As many as max_steps can need. Without a number Lightning's progress bar counts up to epoch -2.
        num_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
        cli.trainer.fit_loop.max_epochs = math.ceil(num_batches / data.order.batches_per_epoch)
    return cli


def name_mistake(config: Config, attempt: Callable[[Config], Result]) -> Result:
    """Returns what `attempt` makes of a run's config, or says which key of the Trainer it fails for.

    Raises:
        UserError: If it fails for a mistake of the user's.
    """
    try:
        return attempt(config)
    except _NO_MISTAKES:
        raise
    except Exception as error:
        given, changed, last = config.trainer.arguments, config, error
        # One key after the other is put back to its default: wrong is the one with which it begins to work.
        for key, default in _defaults(given).items():
            changed = changed.but({f"trainer.{key}": default})
            try:
                attempt(changed)
            except _NO_MISTAKES:
                raise
            except Exception as other:
                last = other
            else:
                raise UserError(
                    f"trainer.{key} is {shown(given[key])}, which cannot work: {reason(last)}; "
                    "change it, or leave it out"
                ) from error
        where = f" ({place})" if (place := foreign_place(last)) else ""
        raise UserError(
            f"this experiment's Trainer, model or data cannot be made: {reason(last)}{where}"
        ) from error


def _defaults(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of the Trainer's keys that have another value and can do without."""
    known = inspect.signature(Trainer).parameters
    return {
        key: known[key].default
        for key, value in trainer.items()
        if value != known[key].default and key != "max_steps"
    }


def interruption(end: SystemExit) -> Interrupted | RunError:
    """Returns what is behind the end of a process: before the first step Lightning makes one of a signal."""
    if isinstance(end, SIGTERMException):
        return Interrupted(signal.SIGTERM)
    if isinstance(end.__context__, KeyboardInterrupt):
        return Interrupted(signal.SIGINT)
    return RunError(f"training was ended by sys.exit({end.code!r}), called in {raised_at(end)}")


def shown(value: Any) -> str:
    """Returns a setting in one short line; a class is shown by its name."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return value if isinstance(value, str) else json.dumps(value)


def reason(error: BaseException) -> str:
    """Returns in one line what went wrong: what the first of a chain of errors says."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r" object at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    if not isinstance(error, (MisconfigurationException, ImportError, ValueError)) or not text:
        text = f"{type(error).__name__}: {text}"
    return textwrap.shorten(text, 400, placeholder=" ...").rstrip(".")


def classes(settings: Any) -> list[dict[str, Any]]:
    """Returns the classes configured under a key that takes none, one, or several of them."""
    several = settings if isinstance(settings, list) else [settings]
    return [one for one in several if isinstance(one, dict)]


def is_a(settings: dict[str, Any], base: type | tuple[type, ...]) -> bool:
    """Tells whether a configured class is `base`, or one of these, or made from it."""
    found = pkgutil.resolve_name(settings["class_path"])
    return isinstance(found, type) and issubclass(found, base)


def _run_settings(
    trainer: dict[str, Any], folder: Path, slot: Slot, progress_bar: bool | None
) -> dict[str, Any]:
    """Returns the Trainer settings of one run: one device, and every file in the run's own folder."""
    trainer = copy.deepcopy(trainer)
    if trainer["logger"] is None or trainer["logger"] is True:
        metrics_log = f"{MetricsLog.__module__}.{MetricsLog.__qualname__}"
        trainer["logger"] = {"class_path": metrics_log, "init_args": {"save_dir": "."}}
    if trainer["log_every_n_steps"] is None and trainer["max_steps"] > 0:
        # Lightning's every 50th step would leave short runs without a row.
        trainer["log_every_n_steps"] = min(50, max(1, trainer["max_steps"] // 10))
    for key in ("logger", "callbacks", "profiler"):
        for settings in classes(trainer[key]):
            for name in FOLDER_ARGUMENTS & settings.get("init_args", {}).keys():
                settings["init_args"][name] = str(_own_folder(settings["init_args"][name], folder))
    callbacks = classes(trainer["callbacks"])
    if progress_bar is not None and not any(is_a(callback, ProgressBar) for callback in callbacks):
        trainer["enable_progress_bar"] = progress_bar
    return {
        **trainer,
        # single_device means the same, but Lightning's would be the CPU, whatever the accelerator.
        "strategy": "auto",
        "accelerator": slot.accelerator,
        "devices": 1 if slot.number is None else [slot.number],
        "callbacks": callbacks,
        "plugins": _plugins(trainer["plugins"]),
        "default_root_dir": str(folder),
        # Lightning's default would write a checkpoint nobody asked for.
        "enable_checkpointing": bool(trainer["enable_checkpointing"])
        or any(is_a(callback, Checkpoint) for callback in callbacks),
    }


def _plugins(asked_for: Any) -> list[Any]:
    """Returns the plugins that are asked for, and one that says that no training is distributed.

    Inside a Slurm job Lightning would take the number of the job's tasks for the number of devices of a run.
    """
    plugins = [] if asked_for is None else asked_for if isinstance(asked_for, list) else [asked_for]
    if any("Environment" in str(plugin) for plugin in plugins):
        return plugins
    return [*plugins, {"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"}]


def _own_folder(asked_for: str | None, run_folder: Path) -> Path:
    """Returns where one run's logger writes: in the run's folder, or in its own below an absolute path."""
    wanted = local_path(asked_for or ".", key="a folder of trainer")
    if "::" in str(wanted):
        raise UserError(
            f"a folder of trainer is {asked_for!r}, which Lightning takes for a chain of addresses"
        )
    if wanted.is_absolute():
        return wanted / run_folder.parent.name / run_folder.name
    return run_folder / wanted


def _silence_noise() -> None:
    """Filters, by name, what libraries say to every run and no user can act on."""
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_tip not in tips.filters:
        tips.addFilter(_is_no_tip)
    # Lightning 2.6 asks torch 2.13 a question in a form that is going away.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
    # The size in the model summary, which counts all weights as float32, is no basis for anything here.
    warnings.filterwarnings("ignore", message=r"Precision .* is not supported by the model summary")
    # A loss scaler may leave out the first step; the recording marks it.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
    # Runs are no tasks of srun, in a Slurm job or beside one.
    warnings.filterwarnings("ignore", message=r"The `srun` command is available on your system")
    # The folder of a run holds its config and recording before its metrics.csv is opened.
    warnings.filterwarnings("ignore", message=r"(?s)Experiment logs directory .* exists and is not empty")


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Drops an advertisement for another package."""
    return "litlogger" not in record.getMessage()
