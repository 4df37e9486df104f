"""Weights in float32, with clipping that acts: equal to transformers.Trainer's, bit for bit.

bfloat16 hides in which order a norm was summed up; float32 shows it after one step.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from flannel_pl.corpus.store import load_corpus
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.training import test_fidelity
from tests.training.notebook_reference import NAMES, OverlappingWindows, RecordingTrainer, Rows

NUM_STEPS, HIDDEN_DIM, SEQ_LEN, BATCH_SIZE = 12, 16, 16, 4


class Float32Rows(Rows):
    """What the notebook keeps of a step, as it is."""

    @staticmethod
    def _bf16(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().cpu().float()


class NormTrainer(RecordingTrainer):
    """Keeps the norm that transformers clips by."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms = [torch.tensor(float("nan"))]

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm: Any = super()._clip_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.norms.append(torch.as_tensor(norm).detach().clone())
        return norm


def reference(
    tokens: np.ndarray[Any, Any], output_dir: Path, *, max_grad_norm: float, bf16: bool, **settings: Any
) -> dict[str, Tensor]:
    torch.manual_seed(43)
    config = GPT2Config(
        vocab_size=SMALL_VOCAB_SIZE,
        n_positions=SEQ_LEN,
        n_embd=HIDDEN_DIM,
        n_layer=settings.pop("n_layer", 2),
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model: Any = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight[:] = torch.randn(SMALL_VOCAB_SIZE, HIDDEN_DIM) * 0.02
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=BATCH_SIZE,
        max_grad_norm=max_grad_norm,
        optim="adamw_torch",
        logging_steps=1000,
        save_steps=1000,
        dataloader_pin_memory=False,
        bf16=bf16,
        seed=43,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    corpus = torch.tensor(np.asarray(tokens), dtype=torch.long)
    trainer = NormTrainer(model=model, args=arguments, train_dataset=OverlappingWindows(corpus, SEQ_LEN))
    trainer.rows = Float32Rows(model, 1)
    trainer.train()
    return {**trainer.rows.stacked(), "grad_norms": torch.stack(trainer.norms)}


CASES: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.05},
    "clipped and decayed": {"max_grad_norm": 0.05, "weight_decay": 0.1},
    "clipped now and then": {"max_grad_norm": 0.6, "weight_decay": 0.01, "learning_rate": 0.02},
    "deeper": {"max_grad_norm": 0.05, "weight_decay": 0.1, "n_layer": 5},
    "other rates": {"max_grad_norm": 0.1, "learning_rate": 1e-2, "adam_beta1": 0.8, "adam_beta2": 0.95},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_float32_equals_transformers(
    small_data: SmallData, tmp_path: Path, case: str, precision: str
) -> None:
    settings = {"learning_rate": 1e-3, **CASES[case]}
    keys = {name: value for name, value in settings.items() if name != "max_grad_norm"}
    arguments = [f"--model.{name}={value}" for name, value in keys.items()]
    arguments += [
        f"--trainer.gradient_clip_val={settings['max_grad_norm']}",
        f"--trainer.precision={precision}",
    ]
    arguments += ["--model.param_dtype=float32", f"--trainer.max_steps={NUM_STEPS}"]
    names = [name for name in NAMES if name not in ("recorded_steps", "losses")]
    dtypes = ",".join(f'"{name}": "float32"' for name in names)
    arguments += [f"--recorder.dtypes={{{dtypes}}}"]
    shard = test_fidelity.small_fit(small_data, tmp_path, *arguments)
    tokens = load_corpus(
        corpus_path=small_data.corpus, tokenizer_path=small_data.tokenizer, vocab_size=SMALL_VOCAB_SIZE
    ).tokens
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = reference(tokens, tmp_path, bf16=precision == "bf16-mixed", **settings)
    finally:
        torch.set_num_threads(threads)
    norms = expected["grad_norms"][1:]
    assert (norms > settings["max_grad_norm"]).any(), "nothing was clipped"
    with safe_open(shard, framework="pt") as recording:
        for name in (*names, "grad_norms"):
            assert torch.equal(
                recording.get_tensor(name).view(torch.int32), expected[name].float().view(torch.int32)
            ), name
