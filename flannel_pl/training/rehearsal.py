"""What only shows when a Trainer is made, or starts: tried before an experiment has any file.

It is tried in memory, on the CPU, with a model of the same kind as small as can be, and without callbacks
that are not Lightning's, of which nobody knows what they write.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch.trainer.trainer
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

from flannel_pl.config import Config, TrainerConfig
from flannel_pl.errors import Interrupted, UserError
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.training.cli import FlannelCLI
from flannel_pl.training.trainer import MISTAKES, build, classes, interruption, is_a, name_mistake, shown
from flannel_pl.training.used import refuse_replaced

_ALWAYS_THERE = {"epoch", "step"}
"""What ModelCheckpoint can monitor besides what is logged."""


def rehearse(
    experiment: ResolvedExperiment,
    runs: Sequence[Run],
    slot: Slot,
    *,
    elsewhere: bool = False,
    side_by_side: bool = False,
) -> None:
    """Makes the Trainer of every run as it is going to be, and lets it start; leaves no file.

    Runs whose Trainers have the same settings share one.

    Args:
        experiment: What the runs belong to.
        runs: The runs to be trained.
        slot: Where one of them is trained.
        elsewhere: Whether that is on another host.
        side_by_side: Whether several runs share this process's terminal.

    Raises:
        UserError: If a run would end because of a setting of the Trainer.
    """
    trainer = experiment.config.trainer
    elsewhere = elsewhere and slot.accelerator != "cpu"
    if elsewhere:
        slot = Slot("cpu", None, slot.threads)  # this host may have none of the cluster's devices
    if side_by_side:
        why = "but several runs share one table of their progress; leave it out, or use --experiment.run"
        _refuse_callbacks(trainer, ProgressBar, why=why)
    why = "which trains with other values than the config has, and than the file would say; leave it out"
    _refuse_callbacks(trainer, (BatchSizeFinder, LearningRateFinder), why=why)
    configs: dict[str, Config] = {}
    for run in runs:
        config = experiment.run_config(run)
        kinds = [config.model.arguments.get("param_dtype"), config.model.class_path, config.data.class_path]
        settings = [config.trainer.arguments, *kinds]
        small = config if config.has_classes else _small(config)
        configs.setdefault(json.dumps(settings, sort_keys=True), small)
    with silence(), settings_kept(), tempfile.TemporaryDirectory(prefix="flannel-") as folder:
        for config in configs.values():
            name_mistake(config, partial(_start, folder=Path(folder), slot=slot, elsewhere=elsewhere))
            _check_monitors(config, Path(folder), slot)


def _refuse_callbacks(trainer: TrainerConfig, kind: type | tuple[type, ...], *, why: str) -> None:
    if refused := [shown(callback) for callback in classes(trainer.callbacks) if is_a(callback, kind)]:
        raise UserError(f"trainer.callbacks has {', '.join(refused)}, {why}")


def _small(config: Config) -> Config:
    """Returns a config of a model that needs next to no memory and time, but logs the same."""
    return config.but({"model.hidden_dim": config.model.arguments["n_head"], "model.n_layer": 1})


def _start(config: Config, *, folder: Path, slot: Slot, elsewhere: bool) -> None:
    """Makes everything of a run, and lets training begin, up to its first batch."""
    cli = build(config, folder, slot, progress_bar=False)
    refuse_replaced(cli.trainer, config, slot, elsewhere=elsewhere)
    if config.has_classes:
        return  # it has been tried, see trial.py
    if slot.accelerator != "cpu":
        cli = build(_on_cpu(config), folder, Slot("cpu", None, slot.threads), progress_bar=False)
    trainer: Any = cli.trainer
    trainer.loggers = [DummyLogger()] * bool(trainer.loggers)
    trainer.profiler = PassThroughProfiler()
    try:
        start_with(cli, _Halt())
    except Enough:
        return
    except (Interrupted, *MISTAKES):
        raise
    except Exception:
        return  # what there is not enough of here, e.g. memory, there may be for the run
    raise ValueError("there is nothing to train")


def _on_cpu(config: Config) -> Config:
    """Returns a config with what every CPU can do."""
    return config.but({"trainer.precision": None, "trainer.plugins": None})


def _may_start(callback: Callback) -> bool:
    is_ours = type(callback).__module__.startswith("lightning.")
    return is_ours and not isinstance(callback, (Checkpoint, ModelSummary, ProgressBar))


class Enough(Exception):
    """Raised where a training would begin."""


class _Halt(Callback):
    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise Enough


def start_with(cli: FlannelCLI, *further: Callback) -> Any:
    """Trains without the callbacks that might write something, and returns the Trainer.

    Args:
        cli: Trainer, module and data.
        further: Callbacks, one of which may raise `Enough`.
    """
    trainer: Any = cli.trainer
    trainer.callbacks = [*filter(_may_start, trainer.callbacks), *further]
    try:
        with _devices_left_alone():
            trainer.fit(cli.model, cli.datamodule)
    except SystemExit as end:
        raise interruption(end) from None
    return trainer


@contextmanager
def _devices_left_alone() -> Iterator[None]:
    """Has Lightning not ask every GPU for the state of its random numbers, which would wake them all."""
    module: Any = lightning.pytorch.trainer.trainer
    isolate = module.isolate_rng
    module.isolate_rng = partial(isolate, include_cuda=False)
    try:
        yield
    finally:
        module.isolate_rng = isolate


def _check_monitors(config: Config, folder: Path, slot: Slot) -> None:
    """Makes a step if a callback monitors something, and refuses what is not logged in it."""
    callbacks = classes(config.trainer.callbacks)
    monitoring = [callback for callback in callbacks if callback.get("init_args", {}).get("monitor")]
    if not monitoring or not all(callback["class_path"].startswith("lightning.") for callback in callbacks):
        return  # callbacks of others may log what is monitored
    logged = _logged_in_a_step(config, folder, slot)
    for callback in monitoring:
        there = logged | _ALWAYS_THERE if is_a(callback, ModelCheckpoint) else logged
        monitor = callback["init_args"]["monitor"]
        if callback["init_args"].get("strict", True) and monitor not in there:
            raise UserError(
                f"trainer.callbacks has {shown(callback)} with monitor {monitor!r}, but what is logged is "
                f"{', '.join(sorted(there))}; monitor one of these, or leave it out"
            )


def _logged_in_a_step(config: Config, folder: Path, slot: Slot) -> set[str]:
    """Returns the names of everything that is logged in an epoch of one step of one sequence."""
    config = config if slot.accelerator == "cpu" else _on_cpu(config)
    shortest = {"fast_dev_run": True, "overfit_batches": 0.0, "log_every_n_steps": 1, "profiler": None}
    small = {} if config.has_classes else {"data.batch_size": 1}
    config = config.but({**{f"trainer.{key}": value for key, value in shortest.items()}, **small})
    trainer = start_with(build(config, folder, Slot("cpu", None, slot.threads), progress_bar=False))
    return set(trainer.callback_metrics)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Takes back what a Trainer sets for its whole process, which runs of another config are started from."""
    cudnn: Any = torch.backends.cudnn
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    variables = dict(os.environ)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.benchmark = benchmark
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


@contextmanager
def silence() -> Iterator[None]:
    """Lets Lightning say what it has to say when the run starts, not here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
