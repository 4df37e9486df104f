"""Training one run: from its config to its finished shard; and what can be checked before that."""

import copy
import dataclasses
import logging
import math
import platform
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flannel_pl import provenance
from flannel_pl.corpus.store import Corpus
from flannel_pl.errors import Interrupted, RunError, UserError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.recording.disk import disk_error
from flannel_pl.recording.lock import SILENT_S, Lock
from flannel_pl.recording.schema import RecordingSchema
from flannel_pl.terminal import drawn_upon
from flannel_pl.training.allocator import keep_memory
from flannel_pl.training.checkpoint import find_resume_point, remove_checkpoints
from flannel_pl.training.cli import FlannelCLI, parse_config
from flannel_pl.training.data import FlannelData
from flannel_pl.training.device import check_device
from flannel_pl.training.metrics_log import MetricsKeeper, MetricsLog
from flannel_pl.training.module import TiedGPT2
from flannel_pl.training.recorder import RunLabel, StepRecorder
from flannel_pl.training.signals import StopOnSignal
from flannel_pl.training.tokens import recorded_token_ids

LOCK_WAIT_S = 15.0 + SILENT_S
"""How long to wait for a run's last process: one whose launcher was killed needs some seconds to notice, and
one that was killed on another host holds its lock until it is taken for dead."""

FOLDER_ARGUMENTS = {"save_dir", "dirpath", "root_dir"}
"""What loggers, checkpoint callbacks and profilers call the folder they write to."""


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
    model = TiedGPT2(**parsed["model"])
    data = FlannelData(**parsed["data"])
    recorder = StepRecorder(
        Path(), **parsed["recorder"], checkpoint_every=config["launch"]["checkpoint_every"]
    )
    _check_parameter(recorder, model.parameter_shapes(), num_tokens=config["model"]["vocab_size"])
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
        skippable=_is_scaling(config["trainer"]),
    )
    return CheckedRun(schema.file_bytes(num_recorded_tokens=None if ids is None else len(ids)), corpus)


def _is_scaling(trainer: dict[str, Any]) -> bool:
    """Tells whether a loss scaler is asked for, which may leave steps out."""
    return str(trainer["precision"]) in ("16-mixed", "16") or "scaler" in str(trainer["plugins"])


def _check_parameter(recorder: StepRecorder, shapes: dict[str, tuple[int, ...]], *, num_tokens: int) -> None:
    """Refuses a parameter that cannot be recorded row by row like the embedding."""
    fitting = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == num_tokens]
    if recorder.parameter not in fitting:
        raise UserError(
            f"recorder.parameter is {recorder.parameter!r}, expected one with a row for every token: "
            f"{', '.join(fitting)}"
        )


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Refuses Trainer settings that a recorded run cannot have."""
    if trainer["max_steps"] < 1:
        raise UserError(
            f"trainer.max_steps is {trainer['max_steps']}, expected at least 1; give the steps of a run, "
            "e.g. --trainer.max_steps 1000"
        )
    if trainer["max_epochs"] == 0:
        raise UserError("trainer.max_epochs is 0, which trains nothing; leave it out, max_steps decides")
    if trainer["fast_dev_run"]:
        raise UserError(
            "trainer.fast_dev_run trains without recording; use --trainer.max_steps 1 for a quick trial"
        )
    if trainer["num_nodes"] != 1 or trainer["strategy"] not in ("auto", "single_device"):
        raise UserError(
            f"trainer.strategy is {trainer['strategy']} on {trainer['num_nodes']} node(s), but every run has "
            "one device; leave both at their defaults: several devices train several runs"
        )


def train(
    experiment: Experiment, run: Run, slot: Slot, *, attempt: int = 1, progress_bar: bool | None = None
) -> None:
    """Trains one run in this process and writes its shard, going on from a checkpoint if there is one.

    Does nothing if the shard is finished.

    Args:
        experiment: What the run belongs to.
        run: Which run.
        slot: Device and number of threads.
        attempt: How often the run has been started, this time included.
        progress_bar: Whether Lightning shows one; None = as the config says.

    Raises:
        UserError: If the config cannot be trained, or another process trains this run.
        RunError: If the recording cannot be written.
        Interrupted: On SIGINT or SIGTERM, once everything so far is on the disk.
    """
    paths = experiment.paths.run(run.index)
    lock = Lock(paths.lock, what=f"run {run.index} of {experiment.paths.folder}")
    _say(lock.acquire(wait_s=LOCK_WAIT_S))
    try:
        if not paths.recording.exists():
            _train(experiment, run, slot, attempt=attempt, progress_bar=progress_bar)
    finally:
        lock.release()


def _train(experiment: Experiment, run: Run, slot: Slot, *, attempt: int, progress_bar: bool | None) -> None:
    config = experiment.run_config(run)
    paths = experiment.paths.run(run.index)
    settings = _run_trainer(config["trainer"], paths.folder, slot)
    if progress_bar is not None:
        settings["enable_progress_bar"] = progress_bar
    keep_memory()
    # Deterministic kernels are wanted, not what torch does besides: filling memory that nobody has read yet.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(slot.threads)
    _silence_noise()
    check_device(slot)
    seed_everything(run.seed, verbose=False)
    cli = FlannelCLI({**config, "trainer": settings}, build=True)
    label = _label(experiment, run, slot, attempt=attempt, data_digests=cli.datamodule.load().digests)
    resume = find_resume_point(paths, every_n_steps=config["recorder"]["every_n_steps"], note=_say)
    if resume is None:
        remove_checkpoints(paths, keep=0)
    else:
        _say(f"going on after step {resume.step}, from {resume.checkpoint.name}")
        label = dataclasses.replace(label, metadata=resume.metadata)
    checkpoint_every = config["launch"]["checkpoint_every"]
    recorder = StepRecorder(
        paths.folder, **config["recorder"], checkpoint_every=checkpoint_every, label=label
    )
    trainer: Any = cli.trainer
    trainer.callbacks[:0] = [StopOnSignal(recorder), recorder]
    if isinstance(trainer.logger, MetricsLog):
        trainer.logger.prepare(going_on=resume is not None)
        trainer.callbacks.append(MetricsKeeper(trainer.logger))
    if all(settings[key] in (None, 0.0) for key in ("max_epochs", "limit_train_batches", "overfit_batches")):
        # As many as max_steps can need. Without a number Lightning's progress bar counts up to epoch -2.
        num_batches = settings["max_steps"] * settings["accumulate_grad_batches"]
        trainer.fit_loop.max_epochs = math.ceil(num_batches / cli.datamodule.order.batches_per_epoch)
    try:
        with drawn_upon():
            if resume is None:
                trainer.fit(cli.model, cli.datamodule)
            else:
                trainer.fit(cli.model, cli.datamodule, ckpt_path=resume.checkpoint, weights_only=True)
    except SystemExit as end:
        # Lightning's way to end a process on Ctrl-C or SIGTERM before the first step.
        number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
        raise Interrupted(number) from None
    except OSError as error:
        raise _what_ended(error, paths.folder) from error


def _what_ended(error: OSError, folder: Path) -> Exception:
    """Returns what ended a training in which `error` came up.

    Loggers write what they have left when training ends in an exception; if they fail in that, it hides
    the exception.
    """
    hidden = error.__context__
    while hidden is not None:
        if isinstance(hidden, (UserError, RunError, Interrupted)):
            return hidden
        hidden = hidden.__context__
    return disk_error(error, Path(error.filename or folder), need_bytes=0)


def _say(note: str | None) -> None:
    if note is not None:
        print(f"flannel-pl: {note}", file=sys.stderr)


def _label(
    experiment: Experiment, run: Run, slot: Slot, *, attempt: int, data_digests: dict[str, str]
) -> RunLabel:
    config = experiment.run_config(run)
    where = {"device": slot.name, "device_name": _device_name(slot), "threads": slot.threads}
    # An index refers to the shards themselves, so there every key has to be unique over all runs.
    prefix = f"run_{run.index}_" if config["experiment"]["gather"] == "index" else ""
    metadata = {
        "experiment": experiment.paths.folder.name,
        "config": config,
        "provenance": {**provenance.collect(), "data": data_digests, **where},
    }
    return RunLabel(run.index, run.seed, run.swept, prefix, attempt, slot.name, metadata)


def _device_name(slot: Slot) -> str:
    """Returns the model of the device, e.g. NVIDIA H200."""
    if slot.accelerator == "cuda":
        return torch.cuda.get_device_name(slot.number)
    return platform.processor() or platform.machine()


def _run_trainer(trainer: dict[str, Any], folder: Path, slot: Slot) -> dict[str, Any]:
    """Returns the Trainer settings of one run: one device, and every file in the run's own folder."""
    trainer = copy.deepcopy(trainer)
    if trainer["logger"] is None or trainer["logger"] is True:
        metrics_log = f"{MetricsLog.__module__}.{MetricsLog.__qualname__}"
        trainer["logger"] = {"class_path": metrics_log, "init_args": {"save_dir": "."}}
    for key in ("logger", "callbacks", "profiler"):
        for settings in _as_list(trainer[key]):
            for name in FOLDER_ARGUMENTS & settings.get("init_args", {}).keys():
                settings["init_args"][name] = str(_own_folder(settings["init_args"][name], folder))
    callbacks = _as_list(trainer["callbacks"])
    return {
        **trainer,
        "accelerator": slot.accelerator,
        "devices": 1 if slot.number is None else [slot.number],
        "callbacks": callbacks,
        "plugins": _plugins(trainer["plugins"]),
        "default_root_dir": str(folder),
        # Lightning's default would write a checkpoint nobody asked for.
        "enable_checkpointing": bool(trainer["enable_checkpointing"])
        or any("ModelCheckpoint" in callback["class_path"] for callback in callbacks),
    }


def _plugins(asked_for: Any) -> list[Any]:
    """Returns the plugins that are asked for, and one that says that no training is distributed.

    Inside a Slurm job Lightning would take the number of the job's tasks for the number of devices of a run.
    """
    plugins = [] if asked_for is None else asked_for if isinstance(asked_for, list) else [asked_for]
    if any("Environment" in str(plugin) for plugin in plugins):
        return plugins
    return [*plugins, {"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"}]


def _as_list(settings: Any) -> list[dict[str, Any]]:
    """Returns the classes configured under a key that takes none, one, or several of them."""
    several = settings if isinstance(settings, list) else [settings]
    return [one for one in several if isinstance(one, dict)]


def _own_folder(asked_for: str | None, run_folder: Path) -> Path:
    """Returns where one run's logger writes: in the run's folder, or in its own below an absolute path."""
    wanted = Path(asked_for or ".")
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
