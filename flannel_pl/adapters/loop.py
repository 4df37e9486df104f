"""Records a plain training loop, or one of Lightning's that optimizes by hand."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flannel_pl.adapters.options import RecorderOptions
from flannel_pl.errors import UserError
from flannel_pl.quantities.core.config import whole
from flannel_pl.quantities.core.optimizers import inner_optimizer
from flannel_pl.quantities.core.recorder import RunRecorder
from flannel_pl.quantities.core.returned import Giving
from flannel_pl.quantities.core.training import Training
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.reader import Recording

_GIVING = Giving("the recorder was given", "give it", "loss=loss", "logits=logits[0, -1].detach()")


class Recorder:
    """Records the steps of a training loop into a folder, from the first one on.

    Row 0 is written when the block is entered; each `after_step` writes a further one. When the block is left
    the file gets its name, with the rows that there are; an error leaves it unfinished.

    Args:
        folder: Where `recording.safetensors` is written.
        model: What is trained.
        optimizer: What steps it, or all of them, e.g. Muon for matrices and AdamW for the rest.
        steps: How many steps there are going to be, at most; None = not known.
        scaler: A `torch.amp.GradScaler`, if there is one: gradients are recorded without its factor.
        options: See `RecorderOptions`.

    Raises:
        UserError: If something of it cannot be recorded, or the folder has a recording; before training.

    Example:
        >>> parameters = {"E": "emb.weight"}
        >>> with flannel_pl.Recorder("runs/mine", model, optimizer, parameters=parameters) as recorder:
        ...     for batch in data:  # doctest: +SKIP
        ...         loss = model(batch)
        ...         loss.backward()
        ...         recorder.before_step()  # before gradients are clipped
        ...         optimizer.step()
        ...         recorder.after_step(loss=loss)
        ...         optimizer.zero_grad()
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        steps: int | None = None,
        scaler: Any = None,
        **options: Any,
    ) -> None:
        self._options = RecorderOptions.of(options)
        self._model, self._scaler = model, scaler
        self._optimizers: list[Any] = [
            inner_optimizer(one) for one in (optimizer if isinstance(optimizer, Sequence) else [optimizer])
        ]
        if not self._optimizers or not all(isinstance(one, Optimizer) for one in self._optimizers):
            raise UserError(f"optimizer is {optimizer!r}, expected one of torch's, or a list of them")
        if scaler is not None and not hasattr(scaler, "unscale_"):
            raise UserError(f"scaler is {scaler!r}, expected a torch.amp.GradScaler")
        self._steps = whole("steps", steps)
        if self._steps is not None and self._steps < 1:
            raise UserError(f"steps is {steps}, expected at least 1, or None if nobody knows")
        self._core = RunRecorder(
            folder,
            self._options.config(model),
            label=self._options.label,
            overwrite=self._options.overwrite,
        )
        self._step = 0
        self._has_begun_step = self._has_passes = False

    def __enter__(self) -> "Recorder":
        """Opens the recording, and writes row 0; or goes on with it, after `load_state_dict`."""
        if self._core.is_recording:
            raise UserError("this recorder records already; leave its block before it is entered again")
        self._has_begun_step = self._has_passes = False
        self._core.begin_anew()
        training = Training(
            self._model,
            self._optimizers,
            self._steps,
            step=self._step,
            token_sets=self._options.token_sets,
            scaler=self._scaler,
            may_skip=self._scaler is not None,
            may_change_rate=True,
            go_on="go on with it (load_state_dict with what state_dict had returned)",
            giving=_GIVING,
        )
        try:
            self._core.listen(self._model, self._options.token_sets, in_training_mode=True)
            self._core.start(training)
        except BaseException:
            self._core.abort("it could not begin")
            raise
        return self

    def forward(
        self,
        *,
        loss: Tensor | float | None,
        logits: Tensor | None = None,
        batch: Any = None,
        returned: Any = None,
    ) -> None:
        """Takes a forward pass of the step; needed only where a step has several.

        Args:
            loss: Its loss, one number, a mean; None if this batch does not count.
            logits: One for each row of the first parameter, (V), e.g. those of the last position.
            batch: What the model was given, for quantities.
            returned: What it returned, likewise.

        Raises:
            UserError: If it is not what can be recorded.
            RunError: If writing has failed.
        """
        self._refuse_closed()
        self._core.heard(batch, returned)
        outputs = None if loss is None else {"loss": _as_number(loss)}
        if outputs is not None and logits is not None:
            outputs["logits"] = logits
        self._core.end_batch(outputs)
        self._has_passes = True

    def before_step(self) -> None:
        """Takes what the step uses up: gradients are whole, and not clipped yet.

        Raises:
            UserError: If the weights are not those of the row before.
            RunError: If writing has failed.
        """
        self._refuse_closed()
        if self._has_begun_step:
            raise UserError("before_step is called again before after_step; call each once in every step")
        self._has_begun_step = True
        self._core.before_step(self._core.step + 1, of=type(self._optimizers[0]).__name__)

    def after_step(
        self,
        *,
        loss: Tensor | float | None = None,
        logits: Tensor | None = None,
        batch: Any = None,
        returned: Any = None,
    ) -> None:
        """Takes what there is after the optimizer has stepped, and writes the row.

        Args:
            loss: Of the step, if `forward` was not told of it.
            logits: See `forward`.
            batch: See `forward`.
            returned: See `forward`.

        Raises:
            UserError: If the step has no loss, or `before_step` was not called.
            RunError: If writing has failed.
        """
        self._refuse_closed()
        if not self._has_begun_step:
            raise UserError(
                "after_step is called without before_step, so the gradients were not recorded; call "
                "recorder.before_step() between loss.backward() and optimizer.step()"
            )
        if self._has_passes == (loss is not None):
            raise UserError(
                "the step's loss was given to forward() and to after_step(); give it to one of them"
                if self._has_passes
                else "after_step was given no loss; say after_step(loss=loss)"
            )
        if not self._has_passes:
            self.forward(loss=loss, logits=logits, batch=batch, returned=returned)
        self._core.after_step(self._core.step + 1, divided_by=1)
        self._has_begun_step = self._has_passes = False

    def open(self) -> Recording:
        """Opens what is recorded so far for reading, also while training goes on."""
        return self._core.open()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs to go on with the recording; its rows are safe on the disk then."""
        self._core.flush()
        return {"step": self._core.step, **self._core.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with an unfinished recording; before the block is entered, once the model has its weights.

        Raises:
            UserError: If it is of another recording, or training has begun.
        """
        if self._core.is_recording:
            raise UserError("load_state_dict comes before the recording begins: before `with recorder:`")
        if not isinstance(state, Mapping) or "step" not in state:
            there = list(map(str, state)) if isinstance(state, Mapping) else [type(state).__name__]
            raise UserError(
                f"the recorder is given a state of {', '.join(there) or 'nothing'}, expected what its "
                "state_dict had returned"
            )
        self._step = whole("the step of a state", state["step"], is_needed=True)
        self._core.load_state_dict(state, step=self._step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finishes the recording; an error leaves it unfinished."""
        stopped = isinstance(error, KeyboardInterrupt)
        message = f"{type(error).__name__}: {error}" if error is not None else "it could not be finished"
        try:
            if error is None and self._core.is_recording:
                self._finish()
        finally:
            self._core.abort(message, state="stopped" if stopped else "failed")

    def _finish(self) -> None:
        step = self._core.step
        if step == 0:
            raise UserError(
                "the block was left before its first step, so there is nothing to record; call before_step() "
                "and after_step(loss=loss) in every step"
            )
        is_whole = self._steps is not None and step == self._steps
        reason = "the loop ended"
        if self._has_begun_step:
            reason = f"the loop ended between before_step and after_step of step {step + 1}"
            warnings.warn(f"{reason}, which is not recorded", stacklevel=3)
        self._core.finish(None if is_whole else EarlyEnd(step, self._steps, reason))
        self._step = 0

    def _refuse_closed(self) -> None:
        if not self._core.is_recording:
            raise UserError(
                "this recorder does not record now; use it in a block: with Recorder(...) as recorder:"
            )


def _as_number(loss: Any) -> Tensor:
    try:
        return loss if isinstance(loss, Tensor) else torch.as_tensor(loss, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"loss is {loss!r}, expected a number or a tensor with one") from error
