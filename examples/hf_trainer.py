"""A `transformers.Trainer`, recorded: python examples/hf_trainer.py [FOLDER]."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import flannel_pl

NUM_TOKENS, WIDTH, STEPS = 200, 16, 20

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=NUM_TOKENS, n_positions=32, n_embd=WIDTH, n_layer=1, n_head=2))
windows = torch.randint(NUM_TOKENS // 2, (256, 32))  # the other half of the tokens never occurs
trainer = Trainer(
    model,
    TrainingArguments(
        "runs/hf_output", max_steps=STEPS, learning_rate=1e-2, report_to="none", save_strategy="no"
    ),
    train_dataset=[{"input_ids": window, "labels": window} for window in windows],
)

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/hf_trainer"
recorder = flannel_pl.hf.record(trainer, folder, parameters={"E": "transformer.wte.weight"})
trainer.train()

with recorder.open() as recording:
    run = recording.run(0)
    moved = abs(run.embeddings[-1] - run.embeddings[0]).mean(axis=1)
    half = NUM_TOKENS // 2
    print(
        f"{run.num_rows} rows; seen tokens moved {moved[:half].mean():.4f}, others {moved[half:].mean():.4f}"
    )
