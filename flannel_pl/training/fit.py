"""Training one run: from its config to its finished shard; and what can be checked before that."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from safetensors.numpy import load

from flannel_pl import provenance
from flannel_pl.adapters.lightning.checkpoint import remove_checkpoints
from flannel_pl.adapters.lightning.checkpointing import Checkpoints
from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.config import Config, TrainerConfig
from flannel_pl.corpus.store import Corpus
from flannel_pl.errors import Interrupted, RunError, UserError, foreign_place
from flannel_pl.experiment import Experiment, Run, RunMemory, RunPaths, Slot
from flannel_pl.quantities.core.columns import declared_columns, schema_of, torch_dtypes
from flannel_pl.quantities.core.config import RecorderConfig, as_config
from flannel_pl.quantities.core.environment import environment, expected_environment
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.quantities.core.run_file import Note
from flannel_pl.quantities.core.tokens import TokenIds, recorded_token_ids
from flannel_pl.quantities.core.watching import check_logged, check_measurable
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.arithmetic import Arithmetic, unified
from flannel_pl.recording.belonging import other_data
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.attempts import with_attempt
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.files import recording_bytes
from flannel_pl.recording.formats.metadata import parse_json
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.schema import RECORDED_TOKENS, RecordingSchema
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.gathering import limits as gather_limits
from flannel_pl.recording.sameness import has_own_data
from flannel_pl.recording.writing.disk import disk_error
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.leftovers import clear_run
from flannel_pl.recording.writing.lock import SILENT_S, Lock
from flannel_pl.terminal import drawn_upon
from flannel_pl.texts import for_file
from flannel_pl.training.allocator import keep_memory
from flannel_pl.training.checkpoint import RunIdentity, find_resume_point
from flannel_pl.training.classes import DEFAULTS, has_corpus
from flannel_pl.training.cli import parse_config, recorder_arguments
from flannel_pl.training.device import check_device
from flannel_pl.training.metrics_log import MetricsKeeper, MetricsLog
from flannel_pl.training.positions import Positions
from flannel_pl.training.random_numbers import RandomNumbers
from flannel_pl.training.signals import StopOnSignal
from flannel_pl.training.trainer import MISTAKES, build, interruption, name_mistake, reason
from flannel_pl.training.trial import try_out
from flannel_pl.training.used import refuse_replaced

LOCK_WAIT_S = 15.0 + SILENT_S
"""How long to wait for a run's last process: one whose launcher was killed needs some seconds to notice, and
one that was killed on another host holds its lock until it is taken for dead."""


@dataclass(frozen=True)
class CheckedRun:
    """What is known of a run once its whole config has been checked."""

    recording_bytes: int
    """Size of its finished shard."""

    corpus: Corpus | None
    """What it is trained on, loaded; None where that is no text."""

    schema: RecordingSchema
    arithmetic: Arithmetic
    token_ids: TokenIds | None
    """The recorded tokens; None = all."""

    parameter_bytes: int | None = None
    """Size of all parameters, where the config does not tell."""

    notice: str = ""
    """What is to be known before it is trained."""

    @property
    def digests(self) -> dict[str, str]:
        """Name of each data file -> the hash of its content, as far as there are known ones."""
        return {} if self.corpus is None else self.corpus.digests

    @property
    def masks(self) -> bytes | None:
        """Content of the file of live and dead tokens; None where there are no tokens."""
        return None if self.corpus is None else self.corpus.masks.to_bytes()

    @property
    def memory(self) -> RunMemory | None:
        """What its rows and its model take of the memory, where the config does not tell."""
        if self.parameter_bytes is None:
            return None
        return RunMemory(row_bytes=self.schema.row_bytes, parameter_bytes=self.parameter_bytes)

    @property
    def static(self) -> dict[str, TokenIds]:
        """What its recording holds besides rows."""
        return {} if self.token_ids is None else {RECORDED_TOKENS: self.token_ids}


def check(experiment: Experiment, run: Run) -> CheckedRun:
    """Checks the config of one run, prepares its data, and sizes its recording; trains and writes nothing.

    Raises:
        UserError: If anything in the config or the data would stop the run.
    """
    config = experiment.run_config(run)
    _check_trainer(config.trainer, every_n_steps=config.recorder.every_n_steps)
    wanted = as_config(**recorder_arguments(config.recorder.arguments), in_experiment=True)
    Checkpoints(RunPaths(Path()), every=config.launch.checkpoint_every, asked=lambda: None)
    check_logged(wanted, config.trainer.log_every_n_steps)
    # With no token matrix to size by, a model of ours is like any other.
    as_any_other = config.has_classes or wanted.parameter is None
    return _check_own(config, run) if as_any_other else _check_default(config, wanted)


def _check_own(config: Config, run: Run) -> CheckedRun:
    """Checks a run of classes that only they themselves can tell of: they are made."""
    parse_config(config.content)
    recorder = StepRecorder(Path(), **recorder_arguments(config.recorder.arguments), in_experiment=True)
    tried = try_out(config, recorder, seed=run.seed)
    data: Any = tried.data
    num_tokens = None if tried.token_ids is None else len(tried.token_ids)
    return CheckedRun(
        recording_bytes(tried.schema, num_recorded_tokens=num_tokens),
        data.load() if has_corpus(data) else None,
        tried.schema,
        tried.arithmetic,
        tried.token_ids,
        tried.parameter_bytes,
        tried.why_anew,
    )


def _check_default(config: Config, wanted: RecorderConfig) -> CheckedRun:
    """Checks a run of the default classes, which need not be made for that."""
    parsed = parse_config(config.content)  # the types of swept values
    model: Any = DEFAULTS["model"](**parsed["model"])
    data: Any = DEFAULTS["data"](**parsed["data"])
    sizes, vocab_size = model.hparams, model.hparams.vocab_size
    _check_parameter(wanted.parameter or "", model.parameter_shapes(), num_tokens=vocab_size)
    arithmetic = Arithmetic.of(sizes.param_dtype, config.trainer.precision)
    corpus = data.load()
    _check_batches(data.hparams.batch_size, corpus.num_tokens - sizes.max_seq_len)
    ids = recorded_token_ids(wanted.tokens, token_sets=data.token_sets, num_tokens=vocab_size)
    shape = (vocab_size, sizes.hidden_dim)
    weights = torch.empty(shape, dtype=getattr(torch, arithmetic.weights), device="meta")
    own_dtypes, may_skip = torch_dtypes(arithmetic.own_dtypes), _is_scaling(config.trainer)
    sets = {name: torch.from_numpy(ids) for name, ids in data.token_sets.items()}
    subject = Subject(weights, wanted.parameter or "", own_dtypes, may_skip, sets, model.on_meta())
    schema = schema_of(
        declared_columns(wanted.all_quantities(subject.module, weights), subject),
        dtypes=wanted.dtypes,
        num_token_ids=None if ids is None else len(ids),
        max_steps=config.trainer.max_steps,
        every_n_steps=wanted.every_n_steps,
        own_dtypes=arithmetic.own_dtypes,
    )
    check_measurable(wanted, shape, own=arithmetic.own_dtypes["embeddings"])
    num_bytes = recording_bytes(schema, num_recorded_tokens=None if ids is None else len(ids))
    return CheckedRun(num_bytes, corpus, schema, arithmetic, ids)


def types_in_words(checked: Mapping[int, CheckedRun]) -> list[str]:
    """Returns lines for a plan: in which types runs compute, what is recorded in a narrower one, and so on.

    Args:
        checked: Number of each run -> what is known of it.
    """
    lines: dict[str, list[int]] = {}
    for index, run in checked.items():
        lines.setdefault(f"arithmetic  {run.arithmetic}", []).append(index)
        if run.schema.narrowed:
            pairs = [f"{name} from {own} to {to}" for name, (own, to) in run.schema.narrowed.items()]
            lines.setdefault(f"rounded     {', '.join(pairs)}", []).append(index)
        if run.notice:
            lines.setdefault(f"data        {run.notice}", []).append(index)
    return [
        line + (f" (runs {', '.join(map(str, runs))})" if len(runs) < len(checked) else "")
        for line, runs in sorted(lines.items())
    ]


def check_gatherable(experiment: Experiment, checked: Mapping[int, CheckedRun], slot: Slot) -> None:
    """Refuses an experiment of more runs than can be gathered as it asks for.

    Args:
        experiment: What is going to be trained.
        checked: Number of each run -> what is known of it.
        slot: Where one of them is trained.

    Raises:
        UserError: Says what else there is to do.
    """
    first, digests, masks = experiment.runs[0], checked[0].digests, checked[0].masks
    host = Slot("cpu", None, slot.threads)  # asking a GPU its name would wake it
    label = _label(experiment, first, host, attempt=1, data_digests=digests)
    label.metadata["attempts"] = with_attempt({}, 0, expected_environment(slot.accelerator))
    origin = {**provenance.collect(), "data": digests}
    settled = {"accelerator": slot.accelerator, "threads_per_run": 1}
    gather_limits.check_header_fits(
        experiment.record(origin, settled=settled),
        masks={} if masks is None else load(masks),
        specs=[_specs(checked[run.index]) for run in experiment.runs],
        metadata=[_planned_metadata(run, checked[run.index], label) for run in experiment.runs],
    )


def _specs(checked: CheckedRun) -> dict[str, TensorSpec]:
    return checked.schema.specs({name: TensorSpec.of(array) for name, array in checked.static.items()})


def _planned_metadata(run: Run, checked: CheckedRun, label: RunLabel) -> dict[str, Any]:
    """Returns what a run's shard is going to say of itself, but for the config, which is shared."""
    known = {"run": run.index, "seed": run.seed, "swept": run.swept, **label.metadata, "config": {}}
    return parse_json(checked.schema.metadata(known, static=checked.static))


def _is_scaling(trainer: TrainerConfig) -> bool:
    """Tells whether a loss scaler is asked for, which may leave steps out."""
    return unified(trainer.precision) == "16-mixed" or "scaler" in str(trainer.plugins)


def _check_parameter(parameter: str, shapes: dict[str, tuple[int, ...]], *, num_tokens: int) -> None:
    """Refuses a parameter that cannot be recorded row by row like the embedding."""
    fitting = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == num_tokens]
    if parameter not in fitting:
        raise UserError(
            f"recorder.parameter is {parameter!r}, expected one with a row for every token: "
            f"{', '.join(fitting)}"
        )


def _check_batches(batch_size: int, num_windows: int) -> None:
    """Refuses batches that the text never fills."""
    if batch_size > num_windows:
        raise UserError(
            f"data.batch_size is {batch_size}, but the text has {num_windows} windows of model.max_seq_len "
            "tokens, so that no batch would be that large; give a smaller one, or a longer text"
        )


def _check_trainer(trainer: TrainerConfig, *, every_n_steps: int) -> None:
    """Refuses Trainer settings that a recorded run cannot have."""
    if trainer.max_steps < 1:
        raise UserError(
            f"trainer.max_steps is {trainer.max_steps}, expected at least 1; give the steps of a run, "
            "e.g. --trainer.max_steps 1000, or --trainer.max_epochs"
        )
    if every_n_steps > trainer.max_steps:
        raise UserError(
            f"recorder.every_n_steps is {every_n_steps}, more than trainer.max_steps {trainer.max_steps}: "
            "nothing but the initial state would be recorded"
        )
    if trainer.max_epochs == 0:
        raise UserError("trainer.max_epochs is 0, which trains nothing; leave it out, max_steps decides")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, expected at least 1"
        )
    if (trainer.gradient_clip_val or 0) < 0:
        raise UserError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, expected 0 or more, or null"
        )
    if (trainer.min_steps or 0) > trainer.max_steps:
        raise UserError(
            f"trainer.min_steps is {trainer.min_steps}, more than trainer.max_steps {trainer.max_steps}"
        )
    if trainer.fast_dev_run:
        raise UserError(
            "trainer.fast_dev_run trains without recording; use --trainer.max_steps 1 for a quick trial"
        )
    if trainer.num_nodes != 1 or trainer.strategy not in ("auto", "single_device"):
        raise UserError(
            f"trainer.strategy is {trainer.strategy} on {trainer.num_nodes} node(s), but every run has "
            "one device; leave both at their defaults: several devices train several runs"
        )


def train(
    experiment: Experiment,
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
def hold_run(experiment: Experiment, run: Run) -> Iterator[None]:
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
    experiment: Experiment,
    run: Run,
    slot: Slot,
    *,
    attempt: int = 1,
    progress_bar: bool | None = None,
    note: Note | None = None,
) -> None:
    """Does what `train` does, within `hold_run`."""
    if not is_there(experiment.paths.run(run.index).recording):
        _train(experiment, run, slot, attempt=attempt, progress_bar=progress_bar, note=note)


def _train(
    experiment: Experiment,
    run: Run,
    slot: Slot,
    *,
    attempt: int,
    progress_bar: bool | None,
    note: Note | None,
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
    label = _label(experiment, run, slot, attempt=attempt, data_digests=digests)
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
    if resume is not None and "ended" not in resume.metadata:
        device = torch.device(slot.accelerator, slot.number or 0)
        recorder.core.refuse_other_environment(
            environment(device), 1 + resume.step // recorder.config.every_n_steps
        )
    trainer: Any = cli.trainer
    looks = [Positions(recorder, _say)] if config.has_classes else []  # those of ours go on
    trainer.callbacks[:0] = [StopOnSignal(recorder), RandomNumbers(), *looks, recorder]
    for log in trainer.loggers:
        if isinstance(log, MetricsLog):
            log.prepare(going_on=resume is not None)
            trainer.callbacks.append(MetricsKeeper(log))
    try:
        with drawn_upon():
            if resume is None:
                trainer.fit(cli.model, cli.datamodule)
            else:
                trainer.fit(cli.model, cli.datamodule, ckpt_path=resume.checkpoint, weights_only=True)
    except SystemExit as end:
        raise interruption(end) from None
    except OSError as error:
        raise _what_ended(error, paths.folder) from error
    except Exception as error:
        check_held(paths.folder)  # where it was removed, loggers fail in ways of their own
        if _is_mistake(error, trainer, first_step=0 if resume is None else resume.step):
            where = f" ({place})" if (place := foreign_place(error)) else ""
            raise UserError(
                f"this cannot be trained: {reason(error)}{where}; change trainer or model"
            ) from error
        raise
    if recorder.early_end is not None:
        _say(str(recorder.early_end))


def _refuse_other_data(experiment: Experiment, digests: dict[str, str]) -> None:
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
    if isinstance(error, MISTAKES) and trainer.global_step == first_step:
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
    return disk_error(error, Path(error.filename or folder), need_bytes=0)


def _say(note: str | None) -> None:
    if note is not None:
        print(f"flannel-pl: {note}", file=sys.stderr)


def _label(
    experiment: Experiment, run: Run, slot: Slot, *, attempt: int, data_digests: dict[str, str]
) -> RunLabel:
    config = experiment.run_config(run)
    # An index refers to the shards themselves, so there every key has to be unique over all runs.
    prefix = run_prefix(run.index) if config.experiment.gather == "index" else ""
    metadata = for_file(
        {
            "experiment": experiment.paths.folder.name,
            "config": config.content,
            "provenance": {"data": data_digests},
        }
    )
    mixing = config.launch.mix_environments
    swept = for_file(run.swept)
    return RunLabel(run.index, run.seed, swept, prefix, attempt, slot.name, metadata, mixing)
