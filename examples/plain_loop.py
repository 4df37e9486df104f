"""A plain training loop, recorded: python examples/plain_loop.py [FOLDER]."""

import sys

import torch
from torch import nn

import flannel_pl

NUM_TOKENS, WIDTH, STEPS = 200, 16, 50

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(NUM_TOKENS, WIDTH), nn.Linear(WIDTH, NUM_TOKENS))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
tokens = torch.randint(NUM_TOKENS // 2, (STEPS, 64))  # the other half never occurs

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop"
with flannel_pl.Recorder(folder, model, optimizer, parameters={"E": "0.weight"}) as recorder:
    for batch in tokens:
        loss = nn.functional.cross_entropy(model(batch[:-1]), batch[1:])
        loss.backward()
        recorder.before_step()  # gradients are whole, and not clipped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recorder.after_step(loss=loss)
        optimizer.zero_grad()

with recorder.open() as recording:
    run = recording.run(0)
    moved = abs(run.embeddings[-1] - run.embeddings[0]).mean(axis=1)
    half = NUM_TOKENS // 2
    print(
        f"{run.num_rows} rows; seen tokens moved {moved[:half].mean():.3f}, others {moved[half:].mean():.3f}"
    )
