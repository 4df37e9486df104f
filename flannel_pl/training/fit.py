"""Training one run: from its config to its finished shard; and what can be checked before that."""

import logging
import math
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flannel_pl import provenance
from flannel_pl.corpus.store import Corpus
from flannel_pl.errors import Interrupted, UserError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.recording.schema import RecordingSchema
from flannel_pl.training.cli import FlannelCLI, parse_config
from flannel_pl.training.data import FlannelData
from flannel_pl.training.module import TiedGPT2
from flannel_pl.training.recorder import RunLabel, StepRecorder
from flannel_pl.training.tokens import recorded_token_ids


@dataclass(frozen=True)
class CheckedRun:
    """What is known of a run once its whole config has been checked."""

    recording_bytes: int
    """Size of its finished shard."""

    corpus: Corpus
    """What it is trained on, loaded."""


def check(experiment: Experiment, run: Run) -> CheckedRun:
    """Checks the config of one run, prepares its data, and sizes its recording; trains and writes nothing.

    Raises:
        UserError: If anything in the config or the data would stop the run.
    """
    config = experiment.run_config(run)
    _check_trainer(config["trainer"])
    parsed = parse_config(config)  # the types of swept values
    TiedGPT2(**parsed["model"])
    data = FlannelData(**parsed["data"])
    recorder = StepRecorder(Path(), **parsed["recorder"])
    corpus = data.load()
    vocab_size = config["model"]["vocab_size"]
    ids = recorded_token_ids(recorder.tokens, token_sets=data.token_sets, num_tokens=vocab_size)
    schema = RecordingSchema.build(
        tensors=recorder.tensors,
        dtypes=recorder.dtypes,
        num_tokens=vocab_size if ids is None else len(ids),
        hidden_dim=config["model"]["hidden_dim"],
        max_steps=config["trainer"]["max_steps"],
        every_n_steps=recorder.every_n_steps,
    )
    return CheckedRun(schema.file_bytes(num_recorded_tokens=None if ids is None else len(ids)), corpus)


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Refuses Trainer settings that a recorded run cannot have."""
    if trainer["max_steps"] < 1:
        raise UserError(
            f"trainer.max_steps is {trainer['max_steps']}, expected at least 1; give the steps of a run, "
            "e.g. --trainer.max_steps 1000"
        )
    if trainer["fast_dev_run"]:
        raise UserError(
            "trainer.fast_dev_run trains without recording; use --trainer.max_steps 1 for a quick trial"
        )
    if trainer["num_nodes"] != 1 or trainer["strategy"] not in ("auto", "single_device"):
        raise UserError(
            f"trainer.strategy is {trainer['strategy']} on {trainer['num_nodes']} node(s), but every run has "
            "one device; leave both at their defaults: several devices train several runs"
        )


def train(experiment: Experiment, run: Run, slot: Slot) -> None:
    """Trains one run in this process and writes its shard.

    Args:
        experiment: What the run belongs to.
        run: Which run.
        slot: Device and number of threads.

    Raises:
        UserError: If the config cannot be trained.
        RunError: If the recording cannot be written.
        Interrupted: On SIGINT or SIGTERM, once the rows so far are on the disk.
    """
    config = experiment.run_config(run)
    folder = experiment.paths.run(run.index).folder
    torch.set_num_threads(slot.threads)
    _silence_noise()
    seed_everything(run.seed, verbose=False)
    settings = _run_trainer(config["trainer"], folder, slot)
    cli = FlannelCLI({**config, "trainer": settings}, build=True)
    label = _label(experiment, run, config, data_digests=cli.datamodule.load().digests)
    trainer: Any = cli.trainer
    trainer.callbacks.insert(0, StepRecorder(folder, **config["recorder"], label=label))
    if settings["max_epochs"] is None:
        # As many as max_steps can need. Without a number Lightning's progress bar counts up to epoch -2.
        num_batches = settings["max_steps"] * settings["accumulate_grad_batches"]
        trainer.fit_loop.max_epochs = math.ceil(num_batches / cli.datamodule.order.batches_per_epoch)
    try:
        trainer.fit(cli.model, cli.datamodule)
    except SystemExit as end:
        # Lightning's way to end a process after Ctrl-C or SIGTERM; its exit codes do not tell them apart.
        number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
        raise Interrupted(number) from None


def _label(
    experiment: Experiment, run: Run, config: dict[str, Any], *, data_digests: dict[str, str]
) -> RunLabel:
    # An index refers to the shards themselves, so there every key has to be unique over all runs.
    prefix = f"run_{run.index}_" if config["experiment"]["gather"] == "index" else ""
    metadata = {
        "experiment": experiment.paths.folder.name,
        "config": config,
        "provenance": {**provenance.collect(), "data": data_digests},
    }
    return RunLabel(run.index, run.seed, run.swept, prefix, metadata)


def _run_trainer(trainer: dict[str, Any], folder: Path, slot: Slot) -> dict[str, Any]:
    """Returns the Trainer settings of one run: one device, and every file in the run's own folder."""
    logger = trainer["logger"]
    if logger is None or logger is True:
        logger = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "", "version": ""}}
    loggers = logger if isinstance(logger, list) else [logger] if logger else []
    for settings in loggers:
        arguments = settings.get("init_args", {})
        if "save_dir" in arguments:
            arguments["save_dir"] = str(_own_folder(arguments["save_dir"], folder))
    callbacks = trainer["callbacks"] or []
    keeps_checkpoints = any("ModelCheckpoint" in callback["class_path"] for callback in callbacks)
    return {
        **trainer,
        "accelerator": slot.accelerator,
        "devices": 1 if slot.device is None else [slot.device],
        "logger": loggers or False,
        "default_root_dir": str(folder),
        # Lightning's default would write a checkpoint nobody asked for.
        "enable_checkpointing": keeps_checkpoints or bool(trainer["enable_checkpointing"]),
    }


def _own_folder(save_dir: str | None, run_folder: Path) -> Path:
    """Returns where one run's logger writes: in the run's folder, or in its own below an absolute path."""
    wanted = Path(save_dir or ".")
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
    # The folder of a run holds its config and recording before its metrics.csv is opened.
    warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty")


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Drops an advertisement for another package."""
    return "litlogger" not in record.getMessage()
