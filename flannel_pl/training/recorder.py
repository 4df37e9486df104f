"""The callback that copies a run's tensors, step by step, into a recording.

It is given a parameter's name and knows nothing of the model around it, so any LightningModule can be
recorded. `recording/schema.py` defines what each row holds.

Shape suffixes: V vocabulary (or the recorded part of it), D width of the embedding.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.errors import Interrupted, RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.early_end import EarlyEnd
from flannel_pl.recording.journal import Journal, JournalEntry
from flannel_pl.recording.layout import read_layout
from flannel_pl.recording.schema import RECORDABLE, RECORDED_TOKENS, SKIPPED, RecordingSchema
from flannel_pl.recording.writer import RecordingWriter, RowBuffer
from flannel_pl.training.checkpoint import identity_in_checkpoint, remove_checkpoints
from flannel_pl.training.checkpointing import Checkpoints
from flannel_pl.training.endings import why_ended
from flannel_pl.training.environment import environment, refuse_other_environment
from flannel_pl.training.label import RunLabel
from flannel_pl.training.optimizing import OptimizerWatch, may_skip
from flannel_pl.training.tokens import TokenIds, recorded_token_ids

Note = Callable[..., object]
"""Called with the name of an event and its fields, see `launch.events`."""

OPTIMIZER_STATE = {"momentum": "exp_avg", "variance": "exp_avg_sq"}
"""Recorded tensor -> its name in the state of torch's Adam optimizers."""


class StepRecorder(Callback):
    """Records one parameter's values, gradient and Adam moments, a row of logits and the loss at every step.

    Row 0 is written when training starts. A further row is due whenever `trainer.global_step` has grown by
    `every_n_steps`, however many batches a step accumulates. The gradient is copied before it is clipped,
    together with the learning rate the step uses; everything else after the step. Copies go into a fixed ring
    of buffers that a background thread empties into `recording.partial`; the file gets its final name when
    its last row is safe.

    With accumulation over several batches the loss is their mean, and the logits are those of the first of
    them. A step that the optimizer did not take, because a loss scaler left it out, is marked in `skipped`.

    The `training_step` has to return a dict with `loss` and, if logits are recorded, `logits` (V): those of
    the first sequence's last position.

    Args:
        folder: Where `recording.safetensors` and the run's journal are written.
        parameter: Name of the recorded parameter, as in `named_parameters()`; shape (V, D).
        tensors: Which of embeddings, grads, momentum, variance, logits and losses to record.
        dtypes: Type to record a tensor in: bfloat16 (default), float16 or float32. With bfloat16 weights the
            default loses nothing.
        tokens: Rows of the parameter to record: `all`, `dead`, `live` (as the data module's `token_sets`
            names them), or the path of a text file with one token id per line.
        every_n_steps: Steps from one recorded row to the next.
        checkpoint_every: Steps from one checkpoint to the next; None = none. Training that goes on from one
            (`Trainer.fit(ckpt_path=...)`) goes on with the unfinished recording.
        label: Which run this is; for the file's metadata and the journal.
        note: Told when training starts: of the first row that is made, and in which environment.

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
        parameter: str,
        *,
        tensors: Sequence[str] = RECORDABLE,
        dtypes: Mapping[str, str] | None = None,
        tokens: str = "all",
        every_n_steps: int = 1,
        checkpoint_every: int | None = None,
        label: RunLabel | None = None,
        note: Note | None = None,
    ) -> None:
        self.paths = RunPaths(Path(folder))
        self._checkpoints = Checkpoints(self.paths, every=checkpoint_every, asked=lambda: self.stop_signal)
        self.parameter = parameter
        self.tensors = (tensors,) if isinstance(tensors, str) else tuple(tensors)
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
        self._schema(num_tokens=1, hidden_dim=1, max_steps=1)
        self._writer: RecordingWriter | None = None
        self._row: RowBuffer | None = None
        self._watch: OptimizerWatch | None = None
        self._weight_VD = torch.empty(0)
        self._token_ids: Tensor | None = None
        self._recorded_step = 0
        self._ended = ""
        self._is_resumed_at_end = False
        self._loss: Tensor | None = None
        self._num_batches = 0
        self._logits_V: Tensor | None = None

    def _schema(
        self, *, num_tokens: int, hidden_dim: int, max_steps: int, skippable: bool = False
    ) -> RecordingSchema:
        return RecordingSchema.build(
            tensors=self.tensors,
            dtypes=self.dtypes,
            num_tokens=num_tokens,
            hidden_dim=hidden_dim,
            max_steps=max_steps,
            every_n_steps=self.every_n_steps,
            skippable=skippable,
            key_prefix=self.label.key_prefix,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before anything is built, a Trainer whose run cannot be recorded."""
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
        if self._checkpoints not in trainer.callbacks:  # type: ignore[attr-defined]
            trainer.callbacks.append(self._checkpoints)  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the recording and writes row 0, the state before any step; or goes on with one."""
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"the module has {len(trainer.optimizers)} optimizers, but one step needs exactly one"
            )
        self._writer = self._open(trainer, pl_module)
        if self._ended:
            trainer.should_stop = True
        self._checkpoints.begin(self._writer, trainer.global_step)
        self._watch = OptimizerWatch(trainer, pl_module, self._weight_VD)
        self._recorded_step = trainer.global_step
        if trainer.global_step == 0:
            row = self._writer.acquire()
            for tensor in row.tensors.values():
                tensor.fill_(float("nan") if tensor.ndim == 0 and tensor.is_floating_point() else 0)
            if "embeddings" in row.tensors:
                self._copy(row, "embeddings", self._weight_VD)
            self._writer.submit(row, 0, self._copied())

    def _open(self, trainer: Trainer, module: LightningModule) -> RecordingWriter:
        self._weight_VD = _parameter(module, self.parameter)
        num_tokens, hidden_dim = self._weight_VD.shape
        ids = self._chosen_ids(trainer, num_tokens)
        self._token_ids = None if ids is None else torch.from_numpy(ids).to(self._weight_VD.device)
        first_row = 0 if trainer.global_step == 0 else 1 + trainer.global_step // self.every_n_steps
        schema = self._schema(
            num_tokens=num_tokens if ids is None else len(ids),
            hidden_dim=hidden_dim,
            max_steps=trainer.max_steps,
            skippable=may_skip(trainer, module) if first_row == 0 else self._is_marking_skipped(),
        )
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
        if first_row < schema.num_rows and not self._ended:
            started = {"run": entry.run, "attempt": entry.attempt, "pid": entry.pid, "first_row": first_row}
            self._note("training_started", **started, environment=now)
        return writer

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

    def _is_marking_skipped(self) -> bool:
        """Tells whether the unfinished recording has the column; one of an earlier version has not."""
        return SKIPPED in read_layout(self.paths.partial).flannel.get("checksum_columns", ())

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
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Copies what the step uses up: the gradient before clipping, its norm, the learning rate."""
        step = trainer.global_step + 1
        if self._writer is None or self._watch is None or step % self.every_n_steps:
            return
        if self._row is not None:
            raise UserError(
                f"{type(optimizer).__name__} evaluates the gradient several times per step, so there is no "
                "one gradient to record; use an optimizer that does not"
            )
        self._row = self._begin_row(self._writer, self._watch, step, rate=self._watch.rate)

    def _begin_row(
        self, writer: RecordingWriter, watch: OptimizerWatch, step: int, *, rate: float | Tensor
    ) -> RowBuffer:
        """Returns the row of a step, with what of it has to be known before the optimizer steps."""
        row = writer.acquire()
        row.tensors["recorded_steps"].fill_(step)
        self._fill(row, "learning_rates", rate)
        self._fill(row, "grad_norms", watch.gradient_norm())
        if "grads" in row.tensors:
            self._copy(row, "grads", watch.gradient())
        return row

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds this batch to the step's loss and, if that was its last batch, writes the step's row."""
        if self._writer is None or self._watch is None:
            return
        self._writer.raise_if_failed()
        self._gather_outputs(outputs)
        if trainer.global_step == self._recorded_step:
            return
        step = self._recorded_step = trainer.global_step
        if step % self.every_n_steps == 0:
            # A module may leave the step out before it comes to `on_before_optimizer_step`.
            rate = self._watch.rate_of_batch
            row = self._row or self._begin_row(self._writer, self._watch, step, rate=rate)
            self._write_row(trainer, self._writer, self._watch, row)
        self._watch.end_step()
        self._row = self._loss = self._logits_V = None
        self._num_batches = 0

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes down which run the checkpoint is of."""
        label = self.label
        checkpoint["flannel_pl"] = identity_in_checkpoint(label.run, label.seed, label.metadata)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns why training has ended early, once it has."""
        return {"ended": self._ended} if self._ended else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes note that a training that goes on had ended early; only the file's name was lacking."""
        self._ended = str(state_dict.get("ended", ""))

    def _gather_outputs(self, outputs: Any) -> None:
        if not isinstance(outputs, dict) or "loss" not in outputs:
            raise UserError(
                'training_step returned no loss to record; return {"loss": loss, ...} from every batch'
            )
        if "logits" in self.tensors and "logits" not in outputs:
            raise UserError(
                "recorder.tensors has 'logits', but training_step does not return them; return "
                '{"loss": loss, "logits": logits[0, -1].detach()} or leave them out of recorder.tensors'
            )
        loss = outputs["loss"].detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._num_batches += 1
        if "logits" in self.tensors and self._logits_V is None:
            self._check_logits(outputs["logits"])
            # A copy: what is given may be a view of the logits of all positions, and the step's next batch
            # needs the memory.
            self._logits_V = outputs["logits"].detach().clone()

    def _check_logits(self, logits_V: Tensor | None) -> None:
        expected = self._weight_VD.shape[:1]
        if logits_V is None or logits_V.shape != expected:
            got = None if logits_V is None else tuple(logits_V.shape)
            raise UserError(
                f"training_step returned logits of shape {got}, expected {tuple(expected)}: one for every "
                f"row of {self.parameter}; return those of one position, or leave them out of "
                "recorder.tensors"
            )

    def _write_row(
        self, trainer: Trainer, writer: RecordingWriter, watch: OptimizerWatch, row: RowBuffer
    ) -> None:
        assert self._loss is not None
        # Lightning has divided each loss by the number of batches of a step, so their sum is the mean; but
        # the last step of an epoch may have had fewer.
        if self._num_batches != trainer.accumulate_grad_batches:
            self._loss = self._loss * (trainer.accumulate_grad_batches / self._num_batches)
        self._fill(row, "losses_f32", self._loss)
        if "losses" in row.tensors:
            self._fill(row, "losses", self._loss)
        if "logits" in row.tensors:
            assert self._logits_V is not None
            self._copy(row, "logits", self._logits_V)
        if "embeddings" in row.tensors:
            self._copy(row, "embeddings", self._weight_VD)
        for name, key in OPTIMIZER_STATE.items():
            if name in row.tensors:
                self._copy(row, name, watch.state(key, of=self.parameter, wanted=name))
        if SKIPPED in row.tensors:
            self._fill(row, SKIPPED, watch.skipped)
        writer.submit(row, trainer.global_step // self.every_n_steps, self._copied())

    @property
    def _on_cuda(self) -> bool:
        return self._weight_VD.device.type == "cuda"

    def _copy(self, row: RowBuffer, name: str, source: Tensor) -> None:
        """Copies `source`, (V, D) or (V), or the recorded tokens' part of it, into the row."""
        self._fill(row, name, source if self._token_ids is None else source[self._token_ids])

    def _fill(self, row: RowBuffer, name: str, value: Tensor | float) -> None:
        """Puts a value into the row, without waiting for the device that computes it."""
        target = row.tensors[name]
        if isinstance(value, Tensor):
            # To the type on the device: a copy that has to change it as well makes the host wait.
            target.copy_(value.detach().to(target.dtype), non_blocking=self._on_cuda)
        else:
            target.fill_(value)

    def _copied(self) -> Callable[[], object] | None:
        """Returns a function that waits until the copies queued so far are done; None if they already are."""
        if not self._on_cuda:
            return None
        # The thread that waits for it sleeps; one that is not blocking would spin on a core.
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return lambda: event.synchronize()

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
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._writer is not None:
            self._writer.abort(message, state=state)
            self._writer = None


def _parameter(module: LightningModule, name: str) -> Tensor:
    parameters = dict(module.named_parameters(remove_duplicate=False))  # a tied one has several names
    if name not in parameters:
        raise UserError(
            f"the module has no parameter {name!r} to record; it has {', '.join(sorted(parameters))}"
        )
    if parameters[name].ndim != 2:
        raise UserError(
            f"{name} has shape {tuple(parameters[name].shape)}, expected two dimensions (tokens, width)"
        )
    return parameters[name]
