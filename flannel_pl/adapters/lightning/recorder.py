"""Records a run that Lightning trains: a callback, which tells the recorder's core of Lightning's moments.

It knows parameters by their names and nothing of the model around them: any LightningModule can be recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.adapters.lightning.checkpoint import (
    identity_in_checkpoint,
    key_in_checkpoint,
    remove_checkpoints,
)
from flannel_pl.adapters.lightning.checkpointing import Checkpoints
from flannel_pl.adapters.lightning.endings import why_ended
from flannel_pl.adapters.lightning.live_log import log_live
from flannel_pl.adapters.lightning.passes import wrap_training_step
from flannel_pl.adapters.lightning.stepping import may_skip, num_steps, refuse_unrecordable, who_changes
from flannel_pl.errors import Interrupted, UserError
from flannel_pl.quantities.core.config import as_config, whole
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.quantities.core.recorder import RunRecorder
from flannel_pl.quantities.core.run_file import Note
from flannel_pl.quantities.core.start import Start
from flannel_pl.quantities.core.tokens import TokenIds, as_token_sets
from flannel_pl.quantities.core.training import Training
from flannel_pl.quantities.core.words import in_words_of_scripts
from flannel_pl.quantities.naming import find_named
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.recording.arithmetic import AUTOCAST
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.schema import RecordingSchema
from flannel_pl.recording.reader import Recording


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
        tokens: Rows to record: `all`, the name of one of the data module's `token_sets`, e.g. `dead`, or the
            path of a text file with one token id per line.
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
        live: Metrics to log through `trainer.logger` every `trainer.log_every_n_steps` steps, e.g.
            origin_radius, see docs/live.md.

    Raises:
        UserError: If a tensor, type, token or interval cannot be recorded; before training starts.
        RunError: At the next step after writing has failed.

    Example:
        >>> recorder = StepRecorder(Path("runs/mine"), "gpt2.transformer.wte.weight")  # doctest: +SKIP
        >>> Trainer(max_steps=100, callbacks=[recorder]).fit(module, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path | str,
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
        overwrite: bool = False,
        live: Sequence[str] | None = None,
    ) -> None:
        with in_words_of_scripts(in_experiment=in_experiment):
            self.config = as_config(
                parameter,
                tensors=tensors,
                dtypes=dtypes,
                tokens=tokens,
                every_n_steps=every_n_steps,
                quantities=quantities,
                parameters=parameters,
                live=live,
                in_experiment=in_experiment,
            )
            self.core = RunRecorder(
                folder,
                self.config,
                label=label,
                note=note,
                in_experiment=in_experiment,
                overwrite=overwrite,
            )
            self.paths = self.core.paths
            self._checkpoints = Checkpoints(
                self.paths, every=whole("checkpoint_every", checkpoint_every), asked=lambda: self.stop_signal
            )
        self.stop_signal: int | None = None
        """A signal that asks for the end: set from outside, obeyed at the end of the step."""

        self.early_end: EarlyEnd | None = None
        """How training has ended, if that was before its last step and on purpose."""

        self._stop_listening: Callable[[], object] = lambda: None
        self._num_steps: int | None = None
        self._ended = ""
        self._is_resumed_at_end = False

    def open(self) -> Recording:
        """Opens what is recorded so far for reading, also while training goes on."""
        return self.core.open()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before anything is built, a Trainer whose run cannot be recorded."""
        if stage != "fit":
            return
        self.core.begin_anew()
        self._ended, self.early_end, self._is_resumed_at_end = "", None, False
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Not in place: the hooks of those in the list are being called.
        others = [one for one in callbacks if one not in (self, self._checkpoints)]
        trainer.callbacks = [*others, self, self._checkpoints]  # type: ignore[attr-defined]
        refuse_unrecordable(trainer, pl_module)

    def make_no_checkpoints(self) -> None:
        """Leaves training to begin anew when it is interrupted."""
        self._checkpoints.leave_out()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to listen to forward passes, before there is any: what is compiled in one stays so."""
        self.core.listen(pl_module, _token_sets(trainer))
        if self.core.listener is not None and self.core.listener.is_wanted:
            self._stop_listening = wrap_training_step(pl_module, self.core)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the recording and writes row 0, the state before any step; or goes on with one."""
        self._start(trainer, pl_module)
        if self._ended:
            trainer.should_stop = True
        self._checkpoints.begin(lambda: self.core.writer, trainer.global_step, last_step=self._num_steps)

    def layout(self, trainer: Trainer, module: LightningModule) -> tuple[RecordingSchema, TokenIds | None]:
        """Returns what the file of a training that begins would hold: its columns, and the recorded tokens.

        Args:
            trainer: The Trainer, with the module's optimizer, where training starts.
            module: What is trained.

        Raises:
            UserError: If it cannot be recorded.
        """
        refuse_unrecordable(trainer, module)
        with in_words_of_scripts(in_experiment=self.core.in_experiment):
            return Start(self.paths, self.config, self.core.label, self._training(trainer, module)).layout()

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        self._num_steps = num_steps(trainer)
        self.core.start(self._training(trainer, module))

    def _training(self, trainer: Trainer, module: LightningModule) -> Training:
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"the module has {len(trainer.optimizers)} optimizers, but one step needs exactly one"
            )
        with in_words_of_scripts(in_experiment=self.core.in_experiment):
            weight = find_named(module, self.config.leading(module))[1]
        ours = [f"{str(path)!r}" for *_, path in self.paths.checkpoints()]
        go_on = f"go on with it (Trainer.fit(..., ckpt_path={ours[0] if ours else '...'}))"
        return Training(
            module,
            trainer.optimizers,
            num_steps(trainer),
            step=trainer.global_step,
            token_sets=_token_sets(trainer),
            logits_dtype=None if self.config.tensors is None else _logits_dtype(trainer, weight.dtype),
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            may_skip=may_skip(trainer, module),
            # The module's own hook comes after those of callbacks, and may set the rate.
            may_change_rate=is_overridden("on_before_optimizer_step", module),
            log_every_n_steps=trainer.log_every_n_steps,  # type: ignore[attr-defined]
            has_ended=bool(self._ended),
            go_on=go_on if ours else go_on + " if you have a checkpoint",
            who_changes=lambda: who_changes(trainer),
        )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of the learning rate."""
        if self.core.watch is not None:
            self.core.watch.begin_batch()

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Forgets batches whose gradients are thrown away: those before an epoch that was broken off."""
        self.core.forget_batches()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Copies what the step uses up: the gradient before clipping, its norm, the learning rate."""
        if self.core.is_recording and self.core.watch is not None:
            self.core.watch.refuse_replaced(trainer.optimizers)
            self.core.before_step(trainer.global_step + 1, of=type(optimizer).__name__)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds this batch to the step's loss and, if that was its last batch, writes the step's row."""
        if not self.core.is_recording:
            return
        self.core.end_batch(outputs)
        if trainer.global_step != self.core.step:
            self.core.after_step(trainer.global_step, divided_by=trainer.accumulate_grad_batches)
            log_live(self.core, trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes down which run the checkpoint is of, and why training has ended early, once it has."""
        # No state of the callback's own: Lightning takes only one of a kind that has any.
        label = self.core.label
        checkpoint[key_in_checkpoint(self, trainer)] = {
            **identity_in_checkpoint(label.run, label.seed, label.metadata),
            **({"ended": self._ended} if self._ended else {}),
            **self.core.state_dict(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes note that a training that goes on had ended early; only the file's name was lacking."""
        ours = checkpoint.get(key_in_checkpoint(self, trainer), {})
        self.core.load_state_dict(ours, step=checkpoint.get("global_step", 0))
        of_earlier_version = checkpoint["callbacks"].get(type(self).__qualname__, {})
        self._ended = str((of_earlier_version | ours).get("ended", ""))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the finished recording its final name."""
        if self.core.is_recording:
            self._finish(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes a recording that lacked nothing but its name: then Lightning had nothing to train."""
        if not self.paths.recording.exists():
            if trainer.global_step == 0:
                raise UserError(_nothing_trained(trainer))
            self._is_resumed_at_end = True
            self._start(trainer, pl_module)
            self._finish(trainer)
            remove_checkpoints(self.paths, keep=1)

    def _finish(self, trainer: Trainer) -> None:
        """Gives the recording its name: with all planned rows, or with those there are if it ended early."""
        step = trainer.global_step
        if step == 0:
            raise UserError(_nothing_trained(trainer))
        if self._num_steps is None or step < self._num_steps:
            was_known = bool(self._ended)
            self._ended = self._ended or why_ended(trainer)
            self.early_end = EarlyEnd(step, self._num_steps, self._ended)
            if not (was_known or self._is_resumed_at_end):
                # Whoever goes on from it ends at once: if this process does not live to name the file.
                self._checkpoints.make(trainer, keep=1)
        log_live(self.core, trainer, all_rows=True)
        self.core.finish(self.early_end)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Brings the rows recorded so far to the disk, unfinished."""
        stopped = isinstance(exception, Interrupted | KeyboardInterrupt)
        self._let_go(f"{type(exception).__name__}: {exception}", stopped=stopped)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes a recording that nothing else closed."""
        self._let_go("training was torn down before its last step", stopped=False)

    def _let_go(self, message: str, *, stopped: bool) -> None:
        self._stop_listening()
        self._stop_listening = lambda: None
        self.core.abort(message, state="stopped" if stopped else "failed")


def _nothing_trained(trainer: Trainer) -> str:
    return f"training ended before its first step ({why_ended(trainer)}), so there is nothing to record"


def _token_sets(trainer: Trainer) -> Mapping[str, Any]:
    return as_token_sets(getattr(getattr(trainer, "datamodule", None), "token_sets", {}))


def _logits_dtype(trainer: Trainer, weights: torch.dtype) -> torch.dtype:
    under_autocast = AUTOCAST.get(str(trainer.precision))
    return weights if under_autocast is None else getattr(torch, under_autocast)
