"""The notebook as a whole, in a process that `experiment.py` starts: every seed in turn, then one file.

Prints, as the last line, a JSON object: seconds of every step but each run's first few, and the peak of the
process's memory in bytes.
"""

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from typing_extensions import override

from benchmarks.sizes import SIZES
from benchmarks.watch import peak_bytes
from flannel_pl.corpus.store import load_corpus
from tests.training import notebook_reference


def main() -> None:
    """Trains, saves, and prints what was measured. Threads are torch's default, as in the notebook."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--skip_steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ends_s: list[float] = []

    class Rows(notebook_reference.Rows):
        @override
        def after_step(self, optimizer: torch.optim.Optimizer) -> None:
            super().after_step(optimizer)
            ends_s.append(time.perf_counter())

    notebook_reference.Rows = Rows  # type: ignore[misc]
    steps_s: list[float] = []
    everything = {}
    tokens = load_corpus(vocab_size=10_000).tokens
    for run in range(options.seeds):
        ends_s.clear()
        tensors = notebook_reference.notebook_recording(
            tokens,
            seed=42 + run,
            max_steps=options.steps,
            output_dir=options.folder,
            device=options.device,
            **vars(SIZES[options.size]),
        )
        everything.update({f"run_{run}_{name}": tensor for name, tensor in tensors.items()})
        kept_s = ends_s[options.skip_steps - 1 : options.steps]  # the Trainer calls once more after the last
        steps_s += [b - a for a, b in itertools.pairwise(kept_s)]
    save_file(everything, options.folder / "notebook.safetensors")
    print(json.dumps({"steps_s": steps_s, "peak_bytes": peak_bytes("self")}))


if __name__ == "__main__":
    main()
