# %% [markdown]
# # World lines of ten dead tokens
#
# A token that never occurs in the text moves all the same: everything that is not the right answer is pushed
# away from it. This page loads a recording, picks ten dead tokens and draws where training takes them.
#
# Run it cell by cell (VS Code, Jupyter with jupytext), or whole:
# `python examples/world_lines.py runs/quickstart world_lines.png`.

# %%
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import flannel_pl

# In a notebook the words behind the program are not ours: there these are what `make demo` records.
words = sys.argv[1:] if Path(sys.argv[0]).name == "world_lines.py" else []
source = Path(words[0]) if words else Path("runs/quickstart")
picture = Path(words[1]) if len(words) > 1 else Path("world_lines.png")

# %% [markdown]
# Only the ten tokens' rows are read, whatever the size of the file. `W_RSD` has R recorded steps, S = 10
# tokens and D dimensions; row 0 is the initial state.

# %%
with flannel_pl.open_recording(source) as recording:
    run = recording.run(0)
    dead = np.flatnonzero(recording.masks["dead_mask"])
    tokens_S = np.random.default_rng(0).choice(dead, size=min(10, len(dead)), replace=False)
    tokens_S.sort()
    W_RSD = run.embeddings[:, tokens_S].astype(np.float32)
    title = f"{len(tokens_S)} dead tokens, seed {run.seed}, steps 0 to {run.steps[-1]}"
print(W_RSD.shape)

# %% [markdown]
# 64 dimensions on paper: the plane in which these world lines extend most, found by a singular value
# decomposition of all their points around the common mean.

# %%
points = W_RSD.reshape(-1, W_RSD.shape[-1])
_, singular_values, axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
lines_RS2 = (W_RSD - points.mean(axis=0)) @ axes[:2].T
share = (singular_values[:2] ** 2).sum() / (singular_values**2).sum()
print(f"the plane holds {share:.0%} of their variance")

# %%
figure = Figure(figsize=(6, 6), layout="constrained")
plot = figure.subplots()
for number, line_R2 in enumerate(lines_RS2.transpose(1, 0, 2)):
    color = f"C{number}"
    plot.plot(*line_R2.T, color=color, linewidth=1)
    plot.plot(*line_R2[0], "o", color=color, markersize=5, fillstyle="none")
    plot.plot(*line_R2[-1], "o", color=color, markersize=5)
plot.plot([], [], "o", color="gray", fillstyle="none", label="start")
plot.plot([], [], "o", color="gray", label="end")
plot.set_aspect("equal", adjustable="datalim")
plot.set_xlabel("first principal direction")
plot.set_ylabel("second principal direction")
plot.set_title(f"{title}\n{share:.0%} of their variance is in this plane", fontsize=10)
plot.legend()
figure.savefig(picture, dpi=150)
print(f"saved {picture}")
