"""The notebook's training, rebuilt on `transformers.Trainer`: the reference our recordings are compared with.

Written from notebook.txt: same model, same initialisation, same Trainer arguments, same two override points,
nothing of flannel_pl. What is kept of each step is what the notebook's `ComprehensiveRecorder` keeps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

NAMES = ("recorded_steps", "embeddings", "grads", "momentum", "variance", "logits", "losses")


class OverlappingWindows(Dataset[dict[str, Tensor]]):
    """Every window of the corpus; the labels are already shifted by one, and the model shifts them again."""

    def __init__(self, tokens: Tensor, seq_len: int) -> None:
        self.tokens, self.seq_len = tokens, seq_len

    def __len__(self) -> int:
        return max(0, len(self.tokens) - self.seq_len)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.tokens[index : index + self.seq_len + 1]
        return {"input_ids": window[:-1], "labels": window[1:]}


class Rows:
    """The notebook's recorder: one row per step, everything in bfloat16, in RAM."""

    def __init__(self, model: GPT2LMHeadModel, every_n_steps: int) -> None:
        self.weight = model.transformer.wte.weight
        self.every_n_steps = every_n_steps
        W = self._bf16(self.weight.data)
        zero = torch.zeros_like(W)
        self.rows: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        self._append(0, W, zero, zero, zero, torch.zeros(len(W), dtype=torch.bfloat16), float("nan"))
        self.step = 1
        self.before: tuple[Tensor, Tensor, float] | None = None

    @staticmethod
    def _bf16(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().cpu().bfloat16()

    def _append(
        self, step: int, W: Tensor, grad: Tensor, m: Tensor, v: Tensor, logits: Tensor, loss: float
    ) -> None:
        values = (torch.tensor(step), W, grad, m, v, logits, torch.tensor(loss, dtype=torch.bfloat16))
        for name, value in zip(NAMES, values, strict=True):
            self.rows[name].append(value)

    def before_step(self, loss: Tensor, logits: Tensor) -> None:
        assert self.weight.grad is not None
        self.before = (self._bf16(self.weight.grad), self._bf16(logits[0, -1, :]), loss.item())

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        # The Trainer calls this once more after the last step; by then there is nothing from before the step.
        if self.before is not None and self.step % self.every_n_steps == 0:
            grad, logits, loss = self.before
            state = optimizer.state[self.weight]
            m, v = self._bf16(state["exp_avg"]), self._bf16(state["exp_avg_sq"])
            self._append(self.step, self._bf16(self.weight.data), grad, m, v, logits, loss)
        self.before = None
        self.step += 1

    def stacked(self) -> dict[str, Tensor]:
        return {name: torch.stack(values) for name, values in self.rows.items()}


class RecordingTrainer(Trainer):
    """transformers.Trainer with the notebook's three overrides."""

    rows: Rows
    last_logits: Tensor

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        self.last_logits = outputs.logits
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.rows.before_step(loss, self.last_logits)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        assert self.optimizer is not None
        self.rows.after_step(self.optimizer)
        super()._maybe_log_save_evaluate(*args, **kwargs)


def notebook_recording(
    tokens: np.ndarray[Any, Any],
    *,
    seed: int,
    max_steps: int,
    output_dir: Path,
    vocab_size: int = 10_000,
    hidden_dim: int = 64,
    n_layer: int = 2,
    n_head: int = 2,
    max_seq_len: int = 128,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    init_scale: float = 0.02,
    every_n_steps: int = 1,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Trains one run as the notebook does and returns its seven tensors, stacked over rows."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - as in the notebook
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=max_seq_len,
        n_embd=hidden_dim,
        n_layer=n_layer,
        n_head=n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=True,
    )
    model: Any = GPT2LMHeadModel(config)
    model = model.to(torch.bfloat16).to(device)
    init = torch.randn(vocab_size, hidden_dim, dtype=torch.float32, device=device) * init_scale
    with torch.no_grad():
        model.transformer.wte.weight[:] = init.to(torch.bfloat16)
    rows = Rows(model, every_n_steps)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
        optim="adamw_torch",
        logging_steps=1000,
        save_steps=max_steps + 1,
        save_total_limit=0,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        bf16=True,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    corpus = torch.tensor(np.asarray(tokens), dtype=torch.long, device=device)
    trainer = RecordingTrainer(
        model=model, args=arguments, train_dataset=OverlappingWindows(corpus, max_seq_len)
    )
    trainer.rows = rows
    trainer.train()
    return rows.stacked()
