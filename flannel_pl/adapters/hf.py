"""Records a run that `transformers.Trainer` trains.

Its callbacks see neither the loss of a step nor gradients before they are clipped, so its `training_step` and
`compute_loss` are wrapped while it trains.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    trainer_utils,
)
from typing_extensions import override

from flannel_pl.adapters.options import RecorderOptions
from flannel_pl.adapters.wrapping import Wrapped
from flannel_pl.errors import UserError
from flannel_pl.quantities.core.optimizers import inner_optimizer
from flannel_pl.quantities.core.recorder import RunRecorder
from flannel_pl.quantities.core.returned import Giving
from flannel_pl.quantities.core.training import Training
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.reader import Recording

_GIVING = Giving("the model returned", "return", "a loss", "logits of shape (B, T, V)")

STATE_FILE = "flannel_pl"
"""In a checkpoint's folder: what quantities remember."""


def record(trainer: Trainer, folder: str | Path, **options: Any) -> "TrainerRecorder":
    """Records the next `trainer.train()` into a folder.

    Args:
        trainer: The Trainer; it is not changed but for one more callback, and while it trains.
        folder: Where `recording.safetensors` is written.
        options: See `RecorderOptions`.

    Returns:
        The recorder; `open` reads what is there, also while training goes on.

    Raises:
        UserError: If something of it cannot be recorded.

    Example:
        >>> flannel_pl.hf.record(trainer, "runs/mine", parameters={"E": "wte.weight"})  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """
    if not isinstance(trainer, Trainer):
        raise UserError(
            f"trainer is of type {type(trainer).__name__}, expected a transformers.Trainer: "
            'record(trainer, "runs/mine", ...)'
        )
    recorder = TrainerRecorder(trainer, folder, RecorderOptions.of(options))
    for one in list(trainer.callback_handler.callbacks):
        # What was wrong with one that was refused is mended in this one.
        if isinstance(one, TrainerRecorder) and one.is_refused:
            one.leave()
    trainer.add_callback(recorder)
    return recorder


class TrainerRecorder(TrainerCallback):
    """Tells the recorder's core of a Trainer's moments; made by `record`.

    Args:
        trainer: The Trainer.
        folder: Where the recording is written.
        options: What is recorded.
    """

    def __init__(self, trainer: Any, folder: str | Path, options: RecorderOptions) -> None:
        if trainer.model is None:
            raise UserError(
                "the Trainer has no model yet; give it one (model=...), not model_init, to record it"
            )
        self._trainer = trainer
        self._options = options
        self._core = RunRecorder(
            folder,
            options.config(trainer.model),
            label=replace(options.label, seed=trainer.args.seed if options.seed is None else options.seed),
            overwrite=options.overwrite,
        )
        self._resumes_from: Any = None
        self._logits: Tensor | None = None
        self._wrapped: list[Wrapped] = []
        self._train = Wrapped(trainer, "train", self._train_recorded)
        self.is_refused = False
        """Whether its training could not begin."""

    def open(self) -> Recording:
        """Opens what is recorded so far for reading, also while training goes on."""
        return self._core.open()

    def _train_recorded(
        self, train: Callable[..., Any], resume_from_checkpoint: Any = None, *arguments: Any, **others: Any
    ) -> Any:
        """Trains, and lets go of everything, however that ends; of the Trainer, too, once it is recorded."""
        find: Any = trainer_utils.get_last_checkpoint
        is_last = resume_from_checkpoint is True
        self._resumes_from = find(self._trainer.args.output_dir) if is_last else resume_from_checkpoint
        message, stopped = "training ended before its last step", False
        try:
            result = train(resume_from_checkpoint, *arguments, **others)
            self.leave()
            return result
        except BaseException as error:
            message, stopped = f"{type(error).__name__}: {error}", isinstance(error, KeyboardInterrupt)
            raise
        finally:
            self._let_go(message, stopped=stopped)

    def leave(self) -> None:
        """Leaves the Trainer as it was."""
        self._train.take_off()
        if self in self._trainer.callback_handler.callbacks:  # nobody has taken it out
            self._trainer.remove_callback(self)

    def _let_go(self, message: str, *, stopped: bool = False) -> None:
        for wrapped in self._wrapped:
            wrapped.take_off()
        self._wrapped.clear()
        self._core.abort(message, state="stopped" if stopped else "failed")

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the recording and writes row 0; or goes on with one."""
        self.is_refused = True  # until it has begun
        if args.world_size != 1 or args.n_gpu > 1:
            raise UserError(
                f"this Trainer spreads one run over {max(args.world_size, args.n_gpu)} devices, but a "
                "recorded run has one; set CUDA_VISIBLE_DEVICES to one of them"
            )
        trainer, accelerator = self._trainer, self._trainer.accelerator
        if self._core.is_recording:  # with smaller batches, after those before had no room in memory
            self._let_go("training began anew")
        self._core.begin_anew()
        if state.global_step > 0:
            self._core.load_state_dict(self._remembered(), step=state.global_step)
        for name, around in (("training_step", self._training_step), ("compute_loss", self._compute_loss)):
            self._wrapped.append(Wrapped(trainer, name, around))
        self._core.listen(trainer.model, self._options.token_sets)
        scaler = getattr(accelerator, "scaler", None)
        self._core.start(
            Training(
                trainer.model,
                [inner_optimizer(trainer.optimizer)],
                state.max_steps,
                step=state.global_step,
                token_sets=self._options.token_sets,
                scaler=scaler,
                may_skip=scaler is not None,
                may_change_rate=True,
                go_on="go on with it (trainer.train(resume_from_checkpoint=...))",
                giving=_GIVING,
            )
        )
        self.is_refused = False

    @property
    def _state_file(self) -> str:
        """What its state is called in a checkpoint's folder; of several recorders each has its own."""
        callbacks = self._trainer.callback_handler.callbacks
        number = [one for one in callbacks if isinstance(one, TrainerRecorder)].index(self)
        return f"{STATE_FILE}_{number}.pt" if number else f"{STATE_FILE}.pt"

    def _remembered(self) -> dict[str, Any]:
        file = Path(self._resumes_from or "") / self._state_file
        state: dict[str, Any] = torch.load(file, weights_only=True) if file.is_file() else {}
        return state

    def _training_step(self, training_step: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        loss = training_step(*arguments, **options)
        outputs = {"loss": loss, **({} if self._logits is None else {"logits": self._logits})}
        self._core.end_batch(outputs)
        if self._trainer.accelerator.sync_gradients and self._core.watch is not None:
            optimizer = inner_optimizer(self._trainer.optimizer)
            self._core.watch.refuse_replaced([optimizer])
            self._core.before_step(self._trainer.state.global_step + 1, of=type(optimizer).__name__)
        return loss

    def _compute_loss(
        self, compute_loss: Callable[..., Any], model: Any, inputs: Any, *arguments: Any, **options: Any
    ) -> Any:
        if not self._trainer.model.training:  # an evaluation in between
            return compute_loss(model, inputs, *arguments, **options)
        seen: list[Any] = []
        handle = self._trainer.model.register_forward_hook(lambda *called: seen.append(called[-1]))
        try:
            with self._core.hearing():
                result = compute_loss(model, inputs, *arguments, **options)
        finally:
            handle.remove()
        returned = seen[-1] if seen else None
        self._core.heard(inputs, returned)
        self._logits = _last_logits(returned)
        return result

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the step's row."""
        if self._core.is_recording:
            # Each loss is divided by the number of its step's batches, or of their items.
            self._core.after_step(state.global_step, divided_by=None)
            self._flush_before_save(control)

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the rows safe before a checkpoint says that they are there."""
        self._flush_before_save(control)

    def _flush_before_save(self, control: TrainerControl) -> None:
        if self._core.is_recording and control.should_save:
            self._core.flush()

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts what quantities remember beside a checkpoint."""
        if self._core.is_recording and (remembered := self._core.state_dict()):
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            torch.save(remembered, folder / self._state_file)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the finished recording its final name."""
        if not self._core.is_recording:
            return
        if self._core.step == 0:
            raise UserError("training ended before its first step, so there is nothing to record")
        is_whole = state.global_step >= state.max_steps
        early = None if is_whole else EarlyEnd(state.global_step, state.max_steps, "a callback stopped it")
        self._core.finish(early)


def _last_logits(returned: Any) -> Tensor | None:
    """Returns the logits of the first sequence's last position, (V), if a model has returned any."""
    logits_BTV = getattr(returned, "logits", None)
    if logits_BTV is None and isinstance(returned, dict):
        logits_BTV = returned.get("logits")
    if not isinstance(logits_BTV, Tensor) or logits_BTV.ndim != 3:
        return None
    return logits_BTV[0, -1].detach()
