"""What can be known of a run before it is trained: its config and data checked, its recording sized."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flannel_pl.adapters.lightning.checkpointing import Checkpoints
from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.config import Config, TrainerConfig
from flannel_pl.corpus.store import Corpus
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, Run, RunMemory, RunPaths
from flannel_pl.quantities.core.columns import declared_columns, refuse_aliases, schema_of, torch_dtypes
from flannel_pl.quantities.core.config import RecorderConfig, as_config
from flannel_pl.quantities.core.tokens import TokenIds, recorded_token_ids
from flannel_pl.quantities.core.watching import check_logged, check_measurable
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.arithmetic import Arithmetic, unified
from flannel_pl.recording.formats.files import recording_bytes
from flannel_pl.recording.formats.schema import RECORDED_TOKENS, RecordingSchema
from flannel_pl.training.classes import DEFAULTS, has_corpus
from flannel_pl.training.cli import parse_config, recorder_arguments
from flannel_pl.training.trial import try_out


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


def check(experiment: ResolvedExperiment, run: Run) -> CheckedRun:
    """Checks the config of one run, prepares its data, and sizes its recording; trains and writes nothing.

    Raises:
        UserError: If anything in the config or the data would stop the run.
    """
    config = experiment.run_config(run)
    _check_trainer(config.trainer, every_n_steps=config.recorder.every_n_steps)
    wanted = as_config(**recorder_arguments(config.recorder.arguments), in_experiment=True)
    Checkpoints(RunPaths(Path()), every=config.launch.checkpoint_every, asked=lambda: None)
    check_logged(wanted, config.trainer.log_every_n_steps)
    # With no token matrix to size by, or another optimizer's state, a model of ours is like any other.
    made = (config.model.arguments.get(name) for name in ("optimizer", "lr_schedule"))
    as_any_other = config.has_classes or wanted.parameter is None or any(isinstance(x, dict) for x in made)
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
    _check_batches(data.hparams.batch_size, data.order.num_windows)
    ids = recorded_token_ids(wanted.tokens, token_sets=data.token_sets, num_tokens=vocab_size)
    shape = (vocab_size, sizes.hidden_dim)
    weights = torch.empty(shape, dtype=getattr(torch, arithmetic.weights), device="meta")
    own_dtypes, may_skip = torch_dtypes(arithmetic.own_dtypes), _is_scaling(config.trainer)
    sets = {name: torch.from_numpy(ids) for name, ids in data.token_sets.items()}
    subject = Subject(weights, wanted.parameter or "", own_dtypes, may_skip, sets, model.on_meta())
    declared = declared_columns(wanted.all_quantities(subject.module, weights), subject)
    refuse_aliases(wanted.parameters, declared)
    schema = schema_of(
        declared,
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
        if run.schema.unknown:
            names = ", ".join(run.schema.unknown)
            lines.setdefault(f"at least    the first step tells how large {names} is", []).append(index)
        if run.notice:
            lines.setdefault(f"data        {run.notice}", []).append(index)
    return [
        line + (f" (runs {', '.join(map(str, runs))})" if len(runs) < len(checked) else "")
        for line, runs in sorted(lines.items())
    ]


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
