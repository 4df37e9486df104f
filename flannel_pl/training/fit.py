"""Training one run: from its config to its finished shard."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LambdaCallback

from flannel_pl.adapters.lightning.checkpoint import remove_checkpoints
from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.errors import Interrupted, RunError, UserError, explanation, foreign_place
from flannel_pl.experiment import ResolvedExperiment, Run, RunPaths, Slot
from flannel_pl.quantities.core.environment import environment, refuse_other_environment
from flannel_pl.quantities.core.run_file import Note
from flannel_pl.recording.belonging import other_data
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.sameness import has_own_data
from flannel_pl.recording.writing.disk import disk_error
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.leftovers import clear_run
from flannel_pl.recording.writing.lock import SILENT_S, Lock
from flannel_pl.recording.writing.space import NO_SPACE
from flannel_pl.terminal import drawn_upon
from flannel_pl.training.allocator import keep_memory
from flannel_pl.training.checkpoint import ResumePoint, RunIdentity, find_resume_point
from flannel_pl.training.classes import has_corpus
from flannel_pl.training.cli import recorder_arguments
from flannel_pl.training.device import check_device
from flannel_pl.training.gatherable import label_of
from flannel_pl.training.metrics_log import MetricsKeeper, MetricsLog
from flannel_pl.training.positions import Positions
from flannel_pl.training.random_numbers import RandomNumbers
from flannel_pl.training.signals import StopOnSignal
from flannel_pl.training.trainer import MISTAKES, build, interruption, name_mistake, reason
from flannel_pl.training.used import refuse_replaced

_NO_GRADIENT = (
    "grad can be implicitly created only for scalar outputs",
    "does not require grad and does not",
)
"""What torch says of a loss from which no gradient follows."""

LOCK_WAIT_S = 15.0 + SILENT_S
"""How long to wait for a run's last process: one whose launcher was killed needs some seconds to notice, and
one that was killed on another host holds its lock until it is taken for dead."""


def train(
    experiment: ResolvedExperiment,
    run: Run,
    slot: Slot,
    *,
    attempt: int = 1,
    progress_bar: bool | None = None,
    note: Note | None = None,
) -> None:
    """Trains one run in this process and writes its shard, going on from a checkpoint if there is one.

    Does nothing if the shard is finished.

    Args:
        experiment: What the run belongs to.
        run: Which run.
        slot: Device and number of threads.
        attempt: How often the run has been started, this time included.
        progress_bar: Whether Lightning shows one; None = as the config says.
        note: Told what happens, for the experiment's events.

    Raises:
        UserError: If the config cannot be trained, or another process trains this run.
        RunError: If the recording cannot be written.
        Interrupted: On SIGINT or SIGTERM, once everything so far is on the disk.
    """
    with hold_run(experiment, run):
        train_held(experiment, run, slot, attempt=attempt, progress_bar=progress_bar, note=note)


@contextlib.contextmanager
def hold_run(experiment: ResolvedExperiment, run: Run) -> Iterator[None]:
    """Keeps other processes from training a run.

    Args:
        experiment: What the run belongs to.
        run: Which run; its folder is there.

    Raises:
        UserError: If another process trains it.
        RunError: If the disk refuses the lock.
    """
    lock = Lock(experiment.paths.run(run.index).lock, what=f"run {run.index} of {experiment.paths.folder}")
    _say(lock.acquire(wait_s=LOCK_WAIT_S))
    try:
        clear_run(experiment.paths.run(run.index))
        yield
    finally:
        lock.release()


def train_held(
    experiment: ResolvedExperiment,
    run: Run,
    slot: Slot,
    *,
    attempt: int = 1,
    progress_bar: bool | None = None,
    note: Note | None = None,
    after_step: Callable[[], object] | None = None,
) -> None:
    """Does what `train` does, within `hold_run`; `after_step` is called last of all after each batch."""
    if not is_there(experiment.paths.run(run.index).recording):
        _train(
            experiment,
            run,
            slot,
            attempt=attempt,
            progress_bar=progress_bar,
            note=note,
            after_step=after_step,
        )


def _train(
    experiment: ResolvedExperiment,
    run: Run,
    slot: Slot,
    *,
    attempt: int,
    progress_bar: bool | None,
    note: Note | None,
    after_step: Callable[[], object] | None,
) -> None:
    config = experiment.run_config(run)
    paths = experiment.paths.run(run.index)
    keep_memory()
    # Deterministic kernels are wanted, not what torch does besides: filling memory that nobody has read yet.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(slot.threads)
    check_device(slot)
    seed_everything(run.seed, verbose=False)
    cli = name_mistake(config, partial(build, folder=paths.folder, slot=slot, progress_bar=progress_bar))
    refuse_replaced(cli.trainer, config, slot)
    data: Any = cli.datamodule
    digests: dict[str, str] = data.load().digests if has_corpus(data) else {}
    _refuse_other_data(experiment, digests)
    label = label_of(experiment, run, slot, attempt=attempt, data_digests=digests)
    whose = RunIdentity(run, config, digests)
    resume = find_resume_point(paths, every_n_steps=config.recorder.every_n_steps, note=_say, whose=whose)
    if resume is None:
        remove_checkpoints(paths, keep=0)
    else:
        _say(f"going on after step {resume.step}, from {resume.checkpoint.name}")
        label = dataclasses.replace(label, metadata=resume.metadata)
    recorder = StepRecorder(
        paths.folder,
        **recorder_arguments(config.recorder.arguments),
        checkpoint_every=config.launch.checkpoint_every,
        label=label,
        note=note,
        in_experiment=True,
    )
    if resume is not None and not ("ended" in resume.metadata or label.mix_environments):
        device = torch.device(slot.accelerator, slot.number or 0)
        first_row = 1 + resume.step // recorder.config.every_n_steps
        refuse_other_environment(paths, environment(device), first_row)
    trainer: Any = cli.trainer
    looks = [Positions(recorder, _say)] if config.has_classes else []  # those of ours go on
    trainer.callbacks[:0] = [StopOnSignal(recorder), RandomNumbers(), *looks, recorder]
    if after_step is not None:
        trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *arguments: after_step()))
    for log in trainer.loggers:
        if isinstance(log, MetricsLog):
            log.prepare(going_on=resume is not None)
            trainer.callbacks.append(MetricsKeeper(log))
    _train_on(cli, resume, paths)
    if recorder.early_end is not None:
        _say(str(recorder.early_end))


def _train_on(cli: Any, resume: ResumePoint | None, paths: RunPaths) -> None:
    """Trains, and says of an error whose fault it is."""
    try:
        with drawn_upon():
            if resume is None:
                cli.trainer.fit(cli.model, cli.datamodule)
            else:
                cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume.checkpoint, weights_only=True)
    except SystemExit as end:
        raise interruption(end) from None
    except OSError as error:
        raise _what_ended(error, paths.folder) from error
    except Exception as error:
        check_held(paths.folder)  # where it was removed, loggers fail in ways of their own
        if _is_mistake(error, cli.trainer, first_step=0 if resume is None else resume.step):
            where = f" ({place})" if (place := foreign_place(error)) else ""
            raise UserError(
                f"this cannot be trained: {reason(error)}{where}; change trainer or model"
            ) from error
        raise


def _refuse_other_data(experiment: ResolvedExperiment, digests: dict[str, str]) -> None:
    """Refuses data files that have changed since the experiment was described."""
    is_swept = has_own_data(experiment.config.experiment.sweep)
    if is_swept or not is_there(experiment.paths.record):
        return
    if wrong := list(other_data({"data": digests}, read_record(experiment.paths).data_digests)):
        raise UserError(
            f"the data files are not those that {experiment.paths.record} was written for: "
            f"{'; '.join(wrong)}; bring them back as they were"
        )


def _is_mistake(error: Exception, trainer: Any, *, first_step: int) -> bool:
    """Tells whether a training that ended with `error` would end so again, because of its settings."""
    if isinstance(error, (UserError, RunError, Interrupted)):
        return False  # these say so themselves
    no_gradient = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_GRADIENT)
    if (no_gradient or isinstance(error, MISTAKES)) and trainer.global_step == first_step:
        return True
    # EarlyStopping says with a RuntimeError that there is nothing of that name.
    monitors = [getattr(callback, "monitor", None) for callback in trainer.callbacks]
    unknown = any(monitor and f"`{monitor}` which is not available" in str(error) for monitor in monitors)
    return isinstance(error, MisconfigurationException) or unknown


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
    if foreign_place(error) is not None and error.errno not in NO_SPACE:
        return explanation(error) or error
    return disk_error(error, Path(error.filename or folder), need_bytes=0)


def _say(note: str | None) -> None:
    if note is not None:
        print(f"flannel-pl: {note}", file=sys.stderr)
