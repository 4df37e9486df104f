"""The callback that copies a run's tensors, step by step, into a recording.

It is given a parameter's name and knows nothing of the model around it, so any LightningModule can be
recorded. `recording/schema.py` defines what each row holds.

Shape suffixes: V vocabulary (or the recorded part of it), D width of the embedding.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.journal import Journal, JournalEntry
from flannel_pl.recording.schema import RECORDABLE, RECORDED_TOKENS, RecordingSchema
from flannel_pl.recording.writer import RecordingWriter, Slot
from flannel_pl.training.tokens import TokenIds, recorded_token_ids

OPTIMIZER_STATE = {"momentum": "exp_avg", "variance": "exp_avg_sq"}
"""Recorded tensor -> its name in the state of torch's Adam optimizers."""


@dataclass(frozen=True)
class RunLabel:
    """Which run a recording is of, and what its file says about that."""

    run: int = 0
    seed: int = 0
    swept: dict[str, Any] = field(default_factory=dict)
    key_prefix: str = ""
    """Goes before every key of the file."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Further facts for the file, e.g. `config` and `provenance`; anything JSON can hold."""


class StepRecorder(Callback):
    """Records one parameter's values, gradient and Adam moments, a row of logits and the loss at every step.

    Row 0 is written when training starts. A further row is due whenever `trainer.global_step` has grown by
    `every_n_steps`, however many batches a step accumulates. The gradient is copied before it is clipped,
    together with the learning rate the step uses; everything else after the step. Copies go into a fixed ring
    of buffers that a background thread empties into `recording.partial`; the file gets its final name when
    its last row is safe.

    With accumulation over several batches the loss is their mean, and the logits are those of the first of
    them.

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
        label: Which run this is; for the file's metadata and the journal.

    Raises:
        UserError: If a tensor, type, token or interval cannot be recorded; before training starts.
        RunError: At the next step after writing has failed, or if training ends before `max_steps`.

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
        label: RunLabel | None = None,
    ) -> None:
        self.paths = RunPaths(Path(folder))
        self.parameter = parameter
        self.tensors = tuple(tensors)
        self.dtypes = dict(dtypes or {})
        self.tokens = tokens
        self.every_n_steps = every_n_steps
        self.label = label or RunLabel()
        # Sizes are known only once there is a module; everything else a user can get wrong is refused here.
        self._schema(num_tokens=1, hidden_dim=1, max_steps=1)
        self._writer: RecordingWriter | None = None
        self._slot: Slot | None = None
        self._weight_VD = torch.empty(0)
        self._token_ids: Tensor | None = None
        self._recorded_step = 0
        self._loss: Tensor | None = None
        self._logits_V: Tensor | None = None

    def _schema(self, *, num_tokens: int, hidden_dim: int, max_steps: int) -> RecordingSchema:
        return RecordingSchema.build(
            tensors=self.tensors,
            dtypes=self.dtypes,
            num_tokens=num_tokens,
            hidden_dim=hidden_dim,
            max_steps=max_steps,
            every_n_steps=self.every_n_steps,
            key_prefix=self.label.key_prefix,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before anything is built, a Trainer whose run cannot be recorded."""
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
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the recording and writes row 0, the state before any step."""
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"the module has {len(trainer.optimizers)} optimizers, but one step needs exactly one"
            )
        self._weight_VD = _parameter(pl_module, self.parameter)
        datamodule: Any = getattr(trainer, "datamodule", None)
        token_sets = getattr(datamodule, "token_sets", {})
        ids = recorded_token_ids(self.tokens, token_sets=token_sets, num_tokens=self._weight_VD.shape[0])
        self._token_ids = None if ids is None else torch.from_numpy(ids).to(self._weight_VD.device)
        self._writer = self._open(trainer, ids)
        self._recorded_step = trainer.global_step
        if trainer.global_step == 0:
            slot = self._writer.acquire()
            for tensor in slot.tensors.values():
                tensor.fill_(float("nan") if tensor.ndim == 0 and tensor.is_floating_point() else 0)
            if "embeddings" in slot.tensors:
                self._copy(slot, "embeddings", self._weight_VD)
            self._writer.submit(slot, 0, self._copied())

    def _open(self, trainer: Trainer, ids: TokenIds | None) -> RecordingWriter:
        num_tokens, hidden_dim = self._weight_VD.shape
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        label, now_s, device = self.label, time.time(), self._weight_VD.device
        schema = self._schema(
            num_tokens=num_tokens if ids is None else len(ids),
            hidden_dim=hidden_dim,
            max_steps=trainer.max_steps,
        )
        entry = JournalEntry(
            run=label.run,
            seed=label.seed,
            swept=label.swept,
            state="running",
            attempt=1,
            device=str(device),
            host=socket.gethostname(),
            pid=os.getpid(),
            num_rows=schema.num_rows,
            rows_written=0,
            rows_committed=0,
            loss=None,
            bytes_written=0,
            started_s=now_s,
            updated_s=now_s,
        )
        return RecordingWriter(
            self.paths.recording,
            partial_path=self.paths.partial,
            schema=schema,
            metadata={"run": label.run, "seed": label.seed, "swept": label.swept, **label.metadata},
            static={} if ids is None else {RECORDED_TOKENS: ids},
            journal_entry=entry,
            journal=Journal(self.paths.journal),
            pin_memory=device.type == "cuda",
        )

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Copies what the step uses up: the gradient before clipping, its norm, the learning rate."""
        step = trainer.global_step + 1
        if self._writer is None or step % self.every_n_steps:
            return
        slot = self._slot = self._writer.acquire()
        slot.tensors["recorded_steps"].fill_(step)
        slot.tensors["learning_rates"].fill_(optimizer.param_groups[0]["lr"])
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # The function that clip_grad_norm_ calls, so this is the very number a clipped step is scaled by.
        slot.tensors["grad_norms"].copy_(torch.nn.utils.get_total_norm(gradients))
        if "grads" in slot.tensors:
            gradient_VD = self._weight_VD.grad
            self._copy(
                slot, "grads", torch.zeros_like(self._weight_VD) if gradient_VD is None else gradient_VD
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds this batch to the step's loss and, if that was its last batch, writes the step's row."""
        if self._writer is None:
            return
        self._writer.raise_if_failed()
        self._gather_outputs(outputs)
        if trainer.global_step == self._recorded_step:
            return
        self._recorded_step = trainer.global_step
        if self._slot is not None:
            self._write_row(trainer, self._writer, self._slot)
        self._slot = self._loss = self._logits_V = None

    def _gather_outputs(self, outputs: Any) -> None:
        if not isinstance(outputs, dict) or ("logits" in self.tensors and "logits" not in outputs):
            raise UserError(
                "recorder.tensors has 'logits', but training_step does not return them; return "
                '{"loss": loss, "logits": logits[0, -1].detach()} or leave them out of recorder.tensors'
            )
        # Lightning has divided each loss by the number of batches of the step, so the sum is their mean.
        loss = outputs["loss"].detach()
        self._loss = loss if self._loss is None else self._loss + loss
        if self._logits_V is None:
            self._logits_V = outputs.get("logits")

    def _write_row(self, trainer: Trainer, writer: RecordingWriter, slot: Slot) -> None:
        assert self._loss is not None
        slot.tensors["losses_f32"].copy_(self._loss, non_blocking=self._on_cuda)
        if "losses" in slot.tensors:
            slot.tensors["losses"].copy_(self._loss, non_blocking=self._on_cuda)
        if "logits" in slot.tensors:
            assert self._logits_V is not None
            self._copy(slot, "logits", self._logits_V)
        if "embeddings" in slot.tensors:
            self._copy(slot, "embeddings", self._weight_VD)
        state = trainer.optimizers[0].state[self._weight_VD]
        for name, key in OPTIMIZER_STATE.items():
            if name in slot.tensors:
                if key not in state:
                    raise UserError(
                        f"recorder.tensors has {name!r}, but {type(trainer.optimizers[0]).__name__} keeps no "
                        f"{key!r} for {self.parameter}; leave it out of recorder.tensors"
                    )
                self._copy(slot, name, state[key])
        writer.submit(slot, trainer.global_step // self.every_n_steps, self._copied())

    @property
    def _on_cuda(self) -> bool:
        return self._weight_VD.device.type == "cuda"

    def _copy(self, slot: Slot, name: str, source: Tensor) -> None:
        """Copies `source`, (V, D) or (V), or the recorded tokens' part of it, into the slot."""
        chosen = source.detach() if self._token_ids is None else source.detach()[self._token_ids]
        slot.tensors[name].copy_(chosen, non_blocking=self._on_cuda)

    def _copied(self) -> Callable[[], object] | None:
        """Returns a function that waits until the copies queued so far are done; None if they already are."""
        if not self._on_cuda:
            return None
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return lambda: event.synchronize()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the finished recording its final name."""
        if self._writer is not None:
            if trainer.global_step < trainer.max_steps:
                raise RunError(
                    f"training ended at step {trainer.global_step} of {trainer.max_steps} (max_epochs, "
                    f"max_time or an early stop), so {self.paths.partial} stays unfinished; set "
                    "trainer.max_steps to what you want"
                )
            self._writer.finish()
            self._writer = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Brings the rows recorded so far to the disk, unfinished."""
        self._abort(f"{type(exception).__name__}: {exception}")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes a recording that nothing else closed."""
        self._abort("training was torn down before its last step")

    def _abort(self, message: str) -> None:
        if self._writer is not None:
            self._writer.abort(message)
            self._writer = None


def _parameter(module: LightningModule, name: str) -> Tensor:
    parameters = dict(module.named_parameters())
    if name not in parameters:
        raise UserError(
            f"the module has no parameter {name!r} to record; it has {', '.join(sorted(parameters))}"
        )
    if parameters[name].ndim != 2:
        raise UserError(
            f"{name} has shape {tuple(parameters[name].shape)}, expected two dimensions (tokens, width)"
        )
    return parameters[name]
