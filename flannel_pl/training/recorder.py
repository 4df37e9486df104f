"""The callback that copies a run's tensors, step by step, into a recording.

It is given a parameter's name and knows nothing of the model around it, so any LightningModule can be
recorded. `recording/formats/schema.py` defines what each row holds.

Shape suffixes: V vocabulary (or the recorded part of it), D width of the embedding.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.errors import Interrupted, RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.quantities.columns import declared_columns, schema_of, torch_dtypes
from flannel_pl.quantities.core import Rows, StepEnd
from flannel_pl.quantities.naming import resolve
from flannel_pl.quantities.notebook import quantities_of
from flannel_pl.quantities.parameters import (
    OF_PARAMETER,
    OPTIMIZER_STATE,
    OptimizerState,
    further_parameters,
    kinds_of,
    leading,
)
from flannel_pl.quantities.passes import Passes
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.row import dtype_name
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.arithmetic import AUTOCAST
from flannel_pl.recording.checking.verify import num_good_rows
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.schema import (
    RECORDABLE,
    RECORDED_TOKENS,
    SCHEMA_VERSION,
    SKIPPED,
    RecordingSchema,
    check_wishes,
)
from flannel_pl.recording.writing.disk import make_folder
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.recording.writing.writer import RecordingWriter
from flannel_pl.training.checkpoint import identity_in_checkpoint, is_row, remove_checkpoints
from flannel_pl.training.checkpointing import Checkpoints
from flannel_pl.training.endings import why_ended
from flannel_pl.training.environment import environment, refuse_other_environment
from flannel_pl.training.label import RunLabel
from flannel_pl.training.listening import Listener
from flannel_pl.training.optimizing import OptimizerWatch, may_skip
from flannel_pl.training.recorded import RecordedParameter
from flannel_pl.training.returned import Returned
from flannel_pl.training.tokens import TokenIds, recorded_token_ids

Note = Callable[..., object]
"""Called with the name of an event and its fields, see `launch.events`."""

_WORDS = {
    "with --launch.mix_environments true": "with label=RunLabel(mix_environments=True)",
    "choose another experiment.name": "record into another folder",
    "Choose another experiment.name or output_dir": "Record into another folder",
}
"""What an experiment's messages advise -> what a script does instead."""

_OPTION = re.compile(
    r"\b(recorder|trainer|launch)\."
    r"(?=(parameters?|tensors|dtypes|tokens|every_n_steps|checkpoint_every)\b)"
)
"""What a config's key has before the name of an argument of `StepRecorder`."""


def _wanted(tensors: Sequence[str] | str | None, *, of_bare: bool) -> tuple[str, ...]:
    """Returns which tensors are to be recorded; of a module that nobody knows, logits only if asked for."""
    if tensors is None:
        return tuple(name for name in RECORDABLE if name != "logits" or of_bare)
    return (tensors,) if isinstance(tensors, str) else tuple(tensors)


class StepRecorder(Callback):
    """Records one parameter's values, gradient and Adam moments, a row of logits and the loss at every step.

    Row 0 is written when training starts. A further row is due whenever `trainer.global_step` has grown by
    `every_n_steps`, however many batches a step accumulates. The gradient is copied before it is clipped,
    together with the learning rate the step uses; everything else after the step. Copies go into a fixed ring
    of buffers that a background thread empties into `recording.partial`; the file gets its final name when
    its last row is safe.

    With accumulation over several batches the loss is their mean, and the logits are those of the first of
    them. A step that the optimizer did not take, because a loss scaler left it out, is marked in `skipped`.

    The `training_step` has to return the loss, or a dict with `loss` and, if logits are recorded, `logits`
    (V): those of the first sequence's last position. A batch for which it returns None does not count; a step
    without any that does has NaN for a loss and 0 for the gradient's norm, and is no rest to a report.

    Whatever its place in the Trainer's list, the recorder puts itself last: what other callbacks change of
    the gradient in `on_before_optimizer_step` and of weights in `on_train_batch_end` is recorded. What the
    module itself changes of the gradient in its `on_before_optimizer_step` comes later, as clipping does. A
    parameter that is changed after its row, before the next step, ends the training with an error: no row
    would have its weights.

    Args:
        folder: Where `recording.safetensors` and the run's journal are written.
        parameter: Name of the recorded parameter, as in `named_parameters()`; shape (V, D), or any other
            where neither logits nor some tokens are recorded. None = only those in `parameters` are recorded.
        tensors: Which of embeddings, grads, momentum, variance, logits and losses to record; None = all of
            them, without the moments if the optimizer never keeps them, and without logits where no
            `parameter` is named, or in an experiment. Whether `training_step` returns logits, the first batch
            tells.
        dtypes: Type to record a tensor in: bfloat16, float16, float32 or float64; its own (default; of the
            loss, which `losses_f32` has in float32, bfloat16) loses nothing.
        tokens: Rows of the parameter to record: `all`, `dead`, `live` (as the data module's `token_sets`
            names them), or the path of a text file with one token id per line.
        every_n_steps: Steps from one recorded row to the next.
        checkpoint_every: Steps from one checkpoint to the next; None = none. Training that goes on from one
            (`Trainer.fit(ckpt_path=...)`) goes on with the unfinished recording.
        label: Which run this is; for the file's metadata and the journal.
        note: Told when training starts: of the first row that is made, and in which environment.
        in_experiment: Whether the folder is part of an experiment, whose keys messages name, and which locks
            the folder and knows what is unfinished there. Else the recorder does, and replaces nothing.
        quantities: What to record besides `tensors`; see `flannel_pl.quantities`.
        parameters: Further parameters of any shape, alias -> name; a name may be a pattern with * or ?, or
            `all`; or one name or pattern, which is its own alias. Each has `alias/values`, `alias/grads`,
            `alias/momentum` and `alias/variance`, as far as those are in `tensors`, and its values where none
            of them is; a buffer has only values.

    Raises:
        UserError: If a tensor, type, token or interval cannot be recorded; before training starts.
        RunError: At the next step after writing has failed.

    Example:
        >>> recorder = StepRecorder(Path("runs/mine"), "gpt2.transformer.wte.weight")  # doctest: +SKIP
        >>> Trainer(max_steps=100, callbacks=[recorder]).fit(module, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path,
        parameter: str | None = None,
        *,
        tensors: Sequence[str] | None = None,
        dtypes: Mapping[str, str] | None = None,
        tokens: str = "all",
        every_n_steps: int = 1,
        checkpoint_every: int | None = None,
        label: RunLabel | None = None,
        note: Note | None = None,
        in_experiment: bool = False,
        quantities: Sequence[Quantity] | None = None,
        parameters: Mapping[str, str] | str | None = None,
    ) -> None:
        self.in_experiment = in_experiment
        self.paths = RunPaths(Path(folder))
        self.parameter = parameter
        self.tensors = self._wanted = _wanted(tensors, of_bare=parameter is not None and not in_experiment)
        self._takes_what_there_is = tensors is None
        self.dtypes = dict(dtypes or {})
        self.tokens = str(tokens)
        self.every_n_steps = every_n_steps
        self.label = label or RunLabel()
        self._note = note or (lambda event, **fields: None)
        self.stop_signal: int | None = None
        """A signal that asks for the end: set from outside, obeyed at the end of the step."""

        self.early_end: EarlyEnd | None = None
        """How training has ended, if that was before its last step and on purpose."""

        # Sizes are known only once there is a module; everything else a user can get wrong is refused here.
        with self._options_named():
            if not self.tensors:
                raise UserError(f"recorder.tensors is empty, expected some of {', '.join(RECORDABLE)}")
            check_wishes(self.tensors, self.dtypes, {}, max_steps=1, every_n_steps=every_n_steps)
            self._checkpoints = Checkpoints(
                self.paths, every=checkpoint_every, asked=lambda: self.stop_signal
            )
        self._writer: RecordingWriter | None = None
        self._rows: Rows | None = None
        self.quantities = tuple(quantities or ())
        self.parameters = {parameters: parameters} if isinstance(parameters, str) else dict(parameters or {})
        self._others: list[RecordedParameter] = []
        self._quantities: list[Quantity] = []
        self._passes = Passes()
        self._listener: Listener | None = None
        self._declared: dict[str, tuple[Quantity, Column]] = {}
        self._subject: Subject | None = None
        self._watch: OptimizerWatch | None = None
        self._recorded: RecordedParameter | None = None
        self._lock: Lock | None = None
        self._weight_VD = torch.empty(0)
        self._token_ids: Tensor | None = None
        self._recorded_step = self._gradient_step = 0
        self._ended = ""
        self._is_resumed_at_end = False
        self._returned = Returned("", None)

    @contextmanager
    def _options_named(self) -> Iterator[None]:
        """Lets messages name what a script gives, not the keys of an experiment's config."""
        try:
            yield
        except (UserError, RunError) as error:
            said = _OPTION.sub("", str(error))
            for ours, a_scripts in _WORDS.items():
                said = said.replace(ours, a_scripts)
            if self.in_experiment or said == str(error):
                raise
            raise type(error)(said) from None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before anything is built, a Trainer whose run cannot be recorded."""
        if stage != "fit":
            return
        self._begin_anew()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Not in place: the hooks of those in the list are being called.
        others = [one for one in callbacks if one not in (self, self._checkpoints)]
        trainer.callbacks = [*others, self, self._checkpoints]  # type: ignore[attr-defined]
        self.refuse_unrecordable(trainer, pl_module)

    def refuse_unrecordable(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a training of which no step could be recorded.

        Args:
            trainer: The Trainer.
            pl_module: What it is to train.

        Raises:
            UserError: Says what stands in the way.
        """
        if not pl_module.automatic_optimization:
            raise UserError(
                f"{type(pl_module).__name__} optimizes by hand, so that Lightning cannot tell one step from "
                "the next; set automatic_optimization = True to record it"
            )
        if trainer.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {trainer.max_steps}, expected at least 1: the size of a recording is "
                "fixed before training starts"
            )
        if trainer.world_size != 1:
            raise UserError(
                f"this Trainer spreads one run over {trainer.world_size} devices, but a recorded run has "
                "one; use devices=1, or `flannel-pl fit` to train several runs side by side"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to listen to forward passes, before there is any: what is compiled in one stays so."""
        if not self.quantities:
            return
        with self._options_named():
            self._find(pl_module)
            subject = self._subject_of(trainer, pl_module)
            declared_columns(self.quantities, subject)
            self._listener = Listener(
                pl_module,
                self.quantities,
                values=self._passes,
                step=self._step,
                every_n_steps=self.every_n_steps,
            )

    def _step(self, **seen: Any) -> Step | None:
        """Returns the step under way, as a forward pass sees it; None before there is a recording."""
        if self._rows is None or self._watch is None:
            return None
        return Step(self._recorded_step + 1, self._rows.subject, self._watch, rate=self._watch.rate, **seen)

    def _begin_anew(self) -> None:
        """Forgets an earlier training of the same recorder, which an exception may have ended anywhere."""
        self._rows, self._passes = None, Passes()
        self._recorded_step = self._gradient_step = 0
        self._ended, self.early_end, self._is_resumed_at_end = "", None, False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the recording and writes row 0, the state before any step; or goes on with one."""
        with self._options_named():
            self._writer = self._open(trainer, pl_module)
        if self._ended:
            trainer.should_stop = True
        self._checkpoints.begin(self._writer, trainer.global_step)
        if trainer.global_step == 0 and self._rows is not None:
            self._rows.take_first()
            self._see()

    def _see(self) -> None:
        """Takes note of the weights that a row has."""
        assert self._recorded is not None
        if "embeddings" in self._bare:
            self._recorded.take()
        for parameter in self._others if "embeddings" in kinds_of(self.tensors) else ():
            parameter.take()

    @property
    def _bare(self) -> tuple[str, ...]:
        """The tensors that have bare names; of a parameter only those of one that is named for that."""
        return tuple(name for name in self.tensors if self.parameter or name not in OF_PARAMETER)

    def _find(self, module: LightningModule) -> None:
        """Finds the parameter whose device and learning rate are the recording's."""
        name = resolve(module, leading(module, self.parameter, self.parameters))[0]
        needs_rows = "logits" in self._wanted or self.tokens != "all"
        if needs_rows and self.parameter is None:
            raise UserError(
                "logits and recorder.tokens need a parameter with a row for each token; name it in "
                "recorder.parameter, or leave logits out of recorder.tensors, and record all tokens"
            )
        self._recorded = RecordedParameter(module, name, has_tokens=needs_rows)
        self._weight_VD = self._recorded.tensor

    @property
    def _lead(self) -> str:
        return "" if self._recorded is None else self._recorded.name

    def layout(self, trainer: Trainer, module: LightningModule) -> tuple[RecordingSchema, TokenIds | None]:
        """Returns what the file of a training that begins would hold: its columns, and the recorded tokens.

        Args:
            trainer: The Trainer, with the module's optimizer, where training starts.
            module: What is trained.

        Raises:
            UserError: If it cannot be recorded.
        """
        self.refuse_unrecordable(trainer, module)
        watch = self._watch_one(trainer, module)
        try:
            return self._planned(trainer, module, watch, first_row=0)
        finally:
            watch.close()

    def _watch_one(self, trainer: Trainer, module: LightningModule) -> OptimizerWatch:
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"the module has {len(trainer.optimizers)} optimizers, but one step needs exactly one"
            )
        self._find(module)
        return OptimizerWatch(trainer, module, self._weight_VD)

    def _planned(
        self, trainer: Trainer, module: LightningModule, watch: OptimizerWatch, *, first_row: int
    ) -> tuple[RecordingSchema, TokenIds | None]:
        if self._takes_what_there_is:
            self.tensors = self._what_there_is(watch, first_row)
        ids = self._chosen_ids(trainer, len(self._weight_VD)) if self._weight_VD.ndim else None
        return self._lay_out(trainer, module, watch, ids, goes_on=first_row > 0), ids

    def _open(self, trainer: Trainer, module: LightningModule) -> RecordingWriter:
        self._recorded_step = trainer.global_step
        watch = self._watch = self._watch_one(trainer, module)
        first_row = 0 if trainer.global_step == 0 else 1 + trainer.global_step // self.every_n_steps
        self._hold_folder(first_row, step=trainer.global_step)
        schema, ids = self._planned(trainer, module, watch, first_row=first_row)
        num_logits = len(self._weight_VD) if "logits" in self.tensors else None
        self._returned = Returned(self._lead, num_logits)
        self._token_ids = None if ids is None else torch.from_numpy(ids).to(self._weight_VD.device)
        now = environment(self._weight_VD.device, name=self.label.device)
        if first_row > 0 and not self._ended:
            self.refuse_other_environment(now, first_row)
        entry = self._first_entry(schema.num_rows, first_row)
        writer = RecordingWriter(
            self.paths.recording,
            partial_path=self.paths.partial,
            schema=schema,
            metadata={
                "run": self.label.run,
                "seed": self.label.seed,
                "swept": self.label.swept,
                **self.label.metadata,
            },
            static={} if ids is None else {RECORDED_TOKENS: ids},
            journal_entry=entry,
            journal=Journal(self.paths.journal),
            environment=None if self._ended else now,
            pin_memory=self._on_cuda,
            first_row=first_row,
        )
        assert self._subject is not None
        self._rows = Rows(
            writer,
            self._quantities,
            self._declared,
            subject=self._subject,
            every_n_steps=self.every_n_steps,
            token_ids=self._token_ids,
            rounded=self.dtypes,
            non_blocking=self._on_cuda,
            passes=self._passes,
        )
        if first_row < schema.num_rows and not self._ended:
            started = {"run": entry.run, "attempt": entry.attempt, "pid": entry.pid, "first_row": first_row}
            self._note("training_started", **started, environment=now)
        return writer

    def _lay_out(
        self,
        trainer: Trainer,
        module: LightningModule,
        watch: OptimizerWatch,
        ids: TokenIds | None,
        *,
        goes_on: bool,
    ) -> RecordingSchema:
        """Asks the quantities for their columns, and returns the rows and columns of the file."""
        skippable, own_dtypes, version = (
            (may_skip(trainer, module), self._own_dtypes(trainer, watch), SCHEMA_VERSION)
            if not goes_on
            else self._as_begun()
        )
        check_wishes(
            self.tensors,
            self.dtypes,
            {name: dtype for name, dtype in own_dtypes.items() if name in self.tensors},
            max_steps=trainer.max_steps,
            every_n_steps=self.every_n_steps,
        )
        # An earlier version does not say what it has rounded to bfloat16.
        types = own_dtypes or dict.fromkeys(RECORDABLE, "bfloat16")
        self._subject = self._subject_of(
            trainer,
            module,
            own_dtypes=torch_dtypes(types),
            may_skip=skippable,
            optimizer=trainer.optimizers[0],
        )
        self._quantities = [*quantities_of(self._bare), *self._further(module, watch), *self.quantities]
        self._declared = declared_columns(self._quantities, self._subject)
        for quantity in self.quantities:
            if isinstance(quantity, OptimizerState):
                wanted = {quantity.column: quantity.key}
                watch.kept_dtypes(wanted, quantity.tensor(self._subject), of=quantity.name(self._subject))
        return schema_of(
            self._declared,
            dtypes=self.dtypes,
            num_token_ids=None if ids is None else len(ids),
            max_steps=trainer.max_steps,
            every_n_steps=self.every_n_steps,
            own_dtypes=own_dtypes,
            key_prefix=self.label.key_prefix,
            version=version,
        )

    def _subject_of(self, trainer: Trainer, module: LightningModule, **known: Any) -> Subject:
        return Subject(
            self._weight_VD,
            self._lead,
            module=module,
            token_sets=self._token_sets(trainer),
            has_bare_names=self.parameter is not None,
            **known,
        )

    def refuse_other_environment(self, now: Mapping[str, Any], first_row: int) -> None:
        """Refuses to mix rows of different environments, unless that is wanted.

        Args:
            now: What `training.environment` says here.
            first_row: First row that would be made now; those before it are there.

        Raises:
            UserError: Names what differs and can change bits.
        """
        if not self.label.mix_environments:
            refuse_other_environment(self.paths, now, first_row)

    def _hold_folder(self, first_row: int, *, step: int) -> None:
        """Keeps others out of the folder, and what is unfinished there from being replaced."""
        if self.in_experiment or self._lock is not None:
            return
        make_folder(self.paths.folder)
        what = f"the recording in {self.paths.folder}"
        lock = Lock(self.paths.lock, what=what, has_status=False)
        lock.acquire()
        self._lock = lock
        if self.paths.recording.exists():
            raise UserError(
                f"{self.paths.recording} exists, and a recording is never overwritten; record into another "
                "folder"
            )
        there = is_there(self.paths.partial)
        if first_row == 0 and there:
            ours = [f"{str(path)!r}" for *_, path in self.paths.checkpoints()]
            go_on = f"go on with it (Trainer.fit(..., ckpt_path={ours[0] if ours else '...'}))"
            raise UserError(
                f"{self.paths.partial} is there, unfinished, and training begins with step 0; "
                f"{go_on if ours else go_on + ' if you have a checkpoint'}, move it away, or record into "
                "another folder"
            )
        if first_row > 0 and not there:
            raise UserError(
                f"training goes on after step {step}, but there is no {self.paths.partial} with the rows "
                "before that; bring it back, or train from the start"
            )
        if first_row > 0:
            self._refuse_other_rows(first_row, step=step)

    def _refuse_other_rows(self, first_row: int, *, step: int) -> None:
        """Refuses a checkpoint, which may be anybody's, that does not go on where the rows end."""
        partial = self.paths.partial
        num_good = num_good_rows(partial)
        if num_good < first_row:
            raise UserError(
                f"training goes on after step {step}, but {partial} has whole rows only up to step "
                f"{(num_good - 1) * self.every_n_steps}; go on from an earlier checkpoint"
            )
        # At the end of a training Lightning may have put averages in the place of its weights.
        is_known = self.parameter is None or is_row(self._weight_VD.detach().cpu(), step, partial)
        if not self._ended and not is_known:
            raise UserError(
                f"training goes on after step {step} with another {self.parameter} than {partial} has of "
                "that step; go on from a checkpoint of the same training"
            )

    def _own_dtypes(self, trainer: Trainer, watch: OptimizerWatch) -> dict[str, str]:
        """Returns in which type each recorded tensor is; refuses those that the optimizer never keeps."""
        if self.parameter is None:
            return {}
        own = dict.fromkeys(("embeddings", "grads"), dtype_name(self._weight_VD))
        own["logits"] = AUTOCAST.get(str(trainer.precision), own["embeddings"])
        moments = {name: key for name, key in OPTIMIZER_STATE.items() if name in self.tensors}
        return own | watch.kept_dtypes(moments, of=self.parameter)

    def _what_there_is(self, watch: OptimizerWatch, first_row: int) -> tuple[str, ...]:
        """Returns the tensors that can be recorded; of a recording that goes on, those that it has."""
        if self.parameter is None:
            return self._wanted  # of each parameter what its optimizer keeps, see `_further`
        if first_row > 0 and is_there(self.paths.partial):
            begun = read_header(self.paths.partial).flannel.get("checksum_columns", ())
            return tuple(name for name in RECORDABLE if name in begun)
        return tuple(name for name in self._wanted if not watch.never_keeps(OPTIMIZER_STATE.get(name)))

    def _as_begun(self) -> tuple[bool, dict[str, str], int]:
        """Returns whether the unfinished recording marks skipped steps, its own types, and its schema.

        One of an earlier version does not know of them.
        """
        said = read_header(self.paths.partial).flannel
        skippable = SKIPPED in said.get("checksum_columns", ())
        return skippable, said.get("own_dtypes", {}), said.get("schema", SCHEMA_VERSION)

    def _further(self, module: LightningModule, watch: OptimizerWatch) -> list[Quantity]:
        """Returns what is recorded of further parameters; refuses what their optimizer never keeps."""
        quantities = further_parameters(module, self.parameters, besides=self.parameter, tensors=self.tensors)
        trained = {id(parameter) for parameter in module.parameters()}
        found = {quantity: resolve(module, str(quantity.of)) for quantity in quantities}
        self._others = [
            RecordedParameter(module, name, has_tokens=False)
            for name, tensor in dict.fromkeys(found.values())
            if id(tensor) in trained
        ]
        return [
            quantity
            for quantity, (_, tensor) in found.items()
            if not (isinstance(quantity, OptimizerState) and watch.never_keeps(quantity.key, tensor))
        ]

    def _token_sets(self, trainer: Trainer) -> dict[str, Tensor]:
        """Returns the data's token sets, as tensors where the parameter is; only if somebody may ask."""
        sets = getattr(getattr(trainer, "datamodule", None), "token_sets", {}) if self.quantities else {}
        return {name: torch.as_tensor(ids, device=self._weight_VD.device) for name, ids in sets.items()}

    def _chosen_ids(self, trainer: Trainer, num_tokens: int) -> TokenIds | None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        token_sets = getattr(datamodule, "token_sets", {})
        return recorded_token_ids(self.tokens, token_sets=token_sets, num_tokens=num_tokens)

    def _first_entry(self, num_rows: int, first_row: int) -> JournalEntry:
        label, now_s = self.label, time.time()
        return JournalEntry(
            run=label.run,
            seed=label.seed,
            swept=label.swept,
            state="running",
            attempt=max(label.attempt, 1 + self._num_attempts()),
            device=label.device or str(self._weight_VD.device),
            host=socket.gethostname(),
            pid=os.getpid(),
            num_rows=num_rows,
            rows_written=first_row,
            rows_committed=first_row,
            loss=None,
            bytes_written=0,
            started_s=now_s,
            updated_s=now_s,
        )

    def _num_attempts(self) -> int:
        """Returns how often the run was started before, as far as its journal knows."""
        try:
            earlier = Journal(self.paths.journal).read()
        except RunError:  # damaged; it is written anew
            return 0
        return 0 if earlier is None else earlier.attempt

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of the learning rate."""
        if self._watch is not None:
            self._watch.begin_batch()

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Forgets batches whose gradients are thrown away: those before an epoch that was broken off."""
        self._returned.clear()
        self._passes.clear()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Copies what the step uses up: the gradient before clipping, its norm, the learning rate."""
        step = trainer.global_step + 1
        if self._writer is None or self._watch is None or self._recorded is None:
            return
        self._watch.refuse_replaced(trainer)
        for parameter in (self._recorded, *self._others):
            parameter.refuse_replaced()
            parameter.refuse_changed(trainer, step=step, on_device=self._on_cuda)
        if step == self._gradient_step:
            raise UserError(
                f"{type(optimizer).__name__} evaluates the gradient several times per step, so there is no "
                "one gradient to record; use an optimizer that does not"
            )
        self._gradient_step = step
        if self._rows is not None:
            self._rows.before_step(step, self._watch, rate=self._watch.rate)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds this batch to the step's loss and, if that was its last batch, writes the step's row."""
        if self._writer is None or self._watch is None:
            return
        with self._options_named():
            self._writer.raise_if_failed()
            self._passes.end(counts=self._returned.add(outputs))
        if trainer.global_step == self._recorded_step:
            return
        step = self._recorded_step = trainer.global_step
        is_due = step % self.every_n_steps == 0
        assert self._recorded is not None
        assert self._rows is not None
        for parameter in (self._recorded, *self._others) if is_due else ():
            parameter.refuse_replaced()
        if is_due:
            self._see()
        with self._options_named():
            self._rows.after_step(step, self._watch, self._step_end(trainer), rate=self._watch.rate_of_batch)
        self._watch.end_step()
        self._returned.clear()

    def _step_end(self, trainer: Trainer) -> StepEnd:
        assert self._watch is not None
        returned, watch = self._returned, self._watch
        loss, is_empty = returned.loss(trainer.accumulate_grad_batches), returned.is_empty
        skipped = True if is_empty else watch.skipped
        return StepEnd(loss, returned.logits_V, skipped, watch.rate_of_step, is_empty)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes down which run the checkpoint is of, and why training has ended early, once it has."""
        # No state of the callback's own: Lightning takes only one of a kind that has any.
        label = self.label
        identity = identity_in_checkpoint(label.run, label.seed, label.metadata)
        states = [quantity.state_dict() for quantity in self.quantities]
        checkpoint["flannel_pl"] = {
            **identity,
            **({"ended": self._ended} if self._ended else {}),
            **({"quantities": states, "quantities_step": self._recorded_step} if any(states) else {}),
        }

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes note that a training that goes on had ended early; only the file's name was lacking."""
        states = checkpoint.get("flannel_pl", {}).get("quantities", [])
        if states and len(states) != len(self.quantities):
            raise UserError(
                f"the checkpoint has the state of {len(states)} quantities, and {len(self.quantities)} are "
                "recorded now; go on with those that the recording was begun with"
            )
        ours = checkpoint.get("flannel_pl", {})
        if states and ours.get("quantities_step") != checkpoint["global_step"]:
            raise UserError(
                f"the checkpoint of step {checkpoint['global_step']} has what quantities remember of step "
                f"{ours.get('quantities_step')}, because it was made before the recorder's turn; go on from "
                "one that the recorder has made (checkpoint_every)"
            )
        for quantity, state in zip(self.quantities, states, strict=False):
            quantity.load_state_dict(state)
        of_earlier_version = checkpoint["callbacks"].get(type(self).__qualname__, {})
        self._ended = str((of_earlier_version | checkpoint.get("flannel_pl", {})).get("ended", ""))

    @property
    def _on_cuda(self) -> bool:
        return self._weight_VD.device.type == "cuda"

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the finished recording its final name."""
        if self._writer is not None:
            self._finish(trainer, self._writer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes a recording that lacked nothing but its name: then Lightning had nothing to train."""
        if not self.paths.recording.exists():
            if trainer.global_step == 0:
                raise UserError(self._nothing_trained(trainer))
            self._is_resumed_at_end = True
            with self._options_named():
                self._writer = self._open(trainer, pl_module)
            self._finish(trainer, self._writer)
            remove_checkpoints(self.paths, keep=1)

    def _finish(self, trainer: Trainer, writer: RecordingWriter) -> None:
        """Gives the recording its name: with all planned rows, or with those there are if it ended early."""
        step = trainer.global_step
        if step == 0:
            raise UserError(self._nothing_trained(trainer))
        if step < trainer.max_steps:
            was_known = bool(self._ended)
            self._ended = self._ended or why_ended(trainer)
            self.early_end = EarlyEnd(step, trainer.max_steps, self._ended)
            if not (was_known or self._is_resumed_at_end):
                # Whoever goes on from it ends at once: if this process does not live to name the file.
                self._checkpoints.make(trainer, keep=1)
        writer.finish(self.early_end)
        self._writer = None
        if self.early_end is not None:
            self._note("ended_early", run=self.label.run, **self.early_end.said)

    def _nothing_trained(self, trainer: Trainer) -> str:
        return f"training ended before its first step ({why_ended(trainer)}), so there is nothing to record"

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Brings the rows recorded so far to the disk, unfinished."""
        stopped = isinstance(exception, Interrupted)
        self._abort(f"{type(exception).__name__}: {exception}", state="stopped" if stopped else "failed")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes a recording that nothing else closed."""
        self._abort("training was torn down before its last step")

    def _abort(self, message: str, *, state: Literal["failed", "stopped"] = "failed") -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._writer is not None:
            # Without a step there is nothing in it that would not be there again: no reason to refuse the
            # next start.
            is_worth_keeping = self.in_experiment or self._recorded_step > 0
            self._writer.abort(message, state=state, keep_file=is_worth_keeping)
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
