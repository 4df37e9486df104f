"""One training loop in a process of its own, a few steps whenever it is told to; started by `steps.py`.

For every line on its standard input the process trains one block of steps and prints how long each took, in
ms, as a JSON list. So several loops can take turns on an otherwise quiet machine while none starts anew.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from typing_extensions import override

from benchmarks.peer_tools import EMBEDDING, KINDS, TOOLS, Tool
from benchmarks.quantities import QUANTITIES
from benchmarks.sizes import SIZES, Size
from flannel_pl import FlannelData, StepRecorder, TiedGPT2
from flannel_pl.corpus.store import load_corpus
from flannel_pl.metrics.row_metrics import ROW_METRICS
from flannel_pl.models.projection import can_stand_in, projected_loss
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.training.allocator import keep_memory
from flannel_pl.training.metrics_log import MetricsLog
from tests.training import notebook_reference

SEED = 42
WARM_UP_STEPS = 5
CHECKPOINT_EVERY = 100
"""`launch.checkpoint_every` as it comes."""


class Turns:
    """Times steps, and waits for its turn after every block of them.

    Args:
        num_blocks: How often it is this loop's turn.
        block_steps: Steps of a block.
        device: cpu or cuda. On cuda only blocks are timed: waiting for each step would slow them down.
        counts_work: Whether the last number of a block is a step's processor time, of all threads, in ms.
    """

    def __init__(self, *, num_blocks: int, block_steps: int, device: str, counts_work: bool = False) -> None:
        self.block_steps, self.device, self._counts_work = block_steps, device, counts_work
        self.max_steps = WARM_UP_STEPS + num_blocks * block_steps
        self._step = 0
        self._times_s: list[float] = []
        self._work_s = 0.0

    def after_step(self) -> None:
        """To be called at the end of every step; further calls after the last one do nothing."""
        self._step += 1
        if self._step < WARM_UP_STEPS or self._step > self.max_steps:
            return
        ends_block = (self._step - WARM_UP_STEPS) % self.block_steps == 0
        if ends_block and self.device == "cuda":
            torch.cuda.synchronize()
        self._times_s.append(time.perf_counter())
        if ends_block:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._step > WARM_UP_STEPS:
            times_ms = [1000 * (b - a) for a, b in itertools.pairwise(self._times_s)]
            if self.device == "cuda":
                times_ms = [sum(times_ms) / len(times_ms)]
            if self._counts_work:
                times_ms.append(1000 * (time.process_time() - self._work_s) / self.block_steps)
            print(json.dumps(times_ms), flush=True)
        else:
            print("ready", flush=True)
        if self._step < self.max_steps:
            sys.stdin.readline()
        self._times_s, self._work_s = [time.perf_counter()], time.process_time()


def main() -> None:
    """Runs the loop that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--num_blocks", type=int, required=True)
    parser.add_argument("--block_steps", type=int, required=True)
    parser.add_argument("--counts_work", action="store_true")
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in ("num_blocks", "block_steps", "device", "counts_work")}
    turns = Turns(**asked)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what the libraries say to each of five processes is not our subject
    LOOPS[options.loop](turns, SIZES[options.size])


def notebook(turns: Turns, size: Size, *, records: bool) -> None:
    """The notebook's loop, with or without what its recorder does."""

    class Rows(notebook_reference.Rows):
        @override
        def before_step(self, loss: torch.Tensor, logits: torch.Tensor) -> None:
            if records:
                super().before_step(loss, logits)

        @override
        def after_step(self, optimizer: torch.optim.Optimizer) -> None:
            if records:
                super().after_step(optimizer)
            turns.after_step()

    notebook_reference.Rows = Rows  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        notebook_reference.notebook_recording(
            load_corpus(vocab_size=10_000).tokens,
            seed=SEED,
            max_steps=turns.max_steps,
            output_dir=Path(folder),
            device=turns.device,
            **vars(size),
        )


class Trained(torch.nn.Module):
    """The model with its loss, so that one call of a module is a forward pass: what tools hook into."""

    def __init__(self, gpt2: Any) -> None:
        super().__init__()
        self.gpt2 = gpt2

    @override
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return _loss(self.gpt2, batch)


def plain(turns: Turns, size: Size, tool: type[Tool] | None = None) -> None:
    """The same arithmetic and allocator as a run of flannel-pl, in a loop of plain torch.

    Args:
        turns: Times the steps.
        size: Of the model and its batches.
        tool: What watches each step. After the last turn and one line more it prints a list: the bytes that
            it left per step, and how many of `KINDS` it gives back of the embedding, to the bit.
    """
    keep_memory()
    torch.manual_seed(SEED)
    device = torch.device(turns.device)
    data = FlannelData(batch_size=size.batch_size, max_seq_len=size.max_seq_len)
    data.setup("fit")
    module = TiedGPT2(hidden_dim=size.hidden_dim, max_seq_len=size.max_seq_len)
    module.configure_model()
    module.to(device)
    model, order = Trained(module.gpt2), data.order
    num_steps = turns.max_steps + (tool is not None)  # the last, after all turns, is what is read back
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept")
        kept.mkdir()
        watching = (tool or Tool)(kept, model, optimizer, num_steps)
        for step in range(num_steps):
            if step == turns.max_steps:
                sys.stdin.readline()  # what follows is not to be in another's turn
            batch = data.transfer_batch_to_device(order.batch(step), device, 0)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(batch)
            loss.backward()
            watching.before_clipping()
            if step == turns.max_steps:
                grad = _embedding(model).grad.clone()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watching.before_step(step, loss)
            optimizer.step()
            schedule.step()
            watching.after_step(step, loss)
            turns.after_step()
        if tool is not None:
            state = optimizer.state[_embedding(model)]
            truth = (_embedding(model), grad, state["exp_avg"], state["exp_avg_sq"])
            _print_what_is_left(watching, dict(zip(KINDS, truth, strict=True)))


def _embedding(model: Trained) -> Any:
    return model.get_parameter(EMBEDDING)


def _print_what_is_left(tool: Tool, truth: dict[str, torch.Tensor]) -> None:
    tool.close()
    num_bytes = sum(path.stat().st_size for path in tool.folder.rglob("*") if path.is_file())
    found = {kind: tensor.cpu() for kind, tensor in tool.read_back().items()}
    equal = [kind for kind in found if _same_bits(found[kind], truth[kind].detach().cpu())]
    print(json.dumps([num_bytes / tool.num_steps, len(equal)]), flush=True)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.contiguous(), other.contiguous()
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _loss(gpt2: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss as `TiedGPT2.training_step` computes it."""
    W_VD = gpt2.lm_head.weight
    if not can_stand_in(W_VD):
        loss: torch.Tensor = gpt2(**batch).loss
        return loss
    hidden_BTD = gpt2.transformer(input_ids=batch["input_ids"]).last_hidden_state
    return projected_loss(hidden_BTD, W_VD, batch["labels"])[0]


def lightning(
    turns: Turns,
    size: Size,
    *,
    records: bool,
    logs: bool = False,
    live: Sequence[str] = (),
    quantities: Sequence[Quantity] = (),
) -> None:
    """A run of flannel-pl under Lightning's Trainer, with or without the recorder and a log of every step."""

    class Timer(Callback):
        @override
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            turns.after_step()

    keep_memory()
    seed_everything(SEED, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        recorder = StepRecorder(
            Path(folder),
            TiedGPT2.EMBEDDING,
            checkpoint_every=CHECKPOINT_EVERY,
            live=live,
            quantities=quantities,
        )
        trainer = Trainer(
            accelerator="gpu" if turns.device == "cuda" else "cpu",
            devices=1,
            max_steps=turns.max_steps,
            precision="bf16-mixed",
            gradient_clip_val=1.0,
            callbacks=[*([recorder] if records else []), Timer()],
            logger=MetricsLog(folder) if logs else False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = TiedGPT2(hidden_dim=size.hidden_dim, max_seq_len=size.max_seq_len)
        trainer.fit(module, FlannelData(batch_size=size.batch_size, max_seq_len=size.max_seq_len))


def _with_tool(tool: type[Tool]) -> Callable[[Turns, Size], None]:
    return lambda turns, size: plain(turns, size, tool)


def _with_quantities(make: Callable[[], Sequence[Quantity]]) -> Callable[[Turns, Size], None]:
    return lambda turns, size: lightning(turns, size, records=True, quantities=make())


LOOPS: dict[str, Callable[[Turns, Size], None]] = {
    "notebook": lambda turns, size: notebook(turns, size, records=False),
    "notebook-recording": lambda turns, size: notebook(turns, size, records=True),
    "plain": plain,
    "lightning": lambda turns, size: lightning(turns, size, records=False),
    "lightning-recording": lambda turns, size: lightning(turns, size, records=True),
    "lightning-logging": lambda turns, size: lightning(turns, size, records=True, logs=True),
    "lightning-live": lambda turns, size: lightning(
        turns, size, records=True, logs=True, live=[*ROW_METRICS]
    ),
    **{name: _with_quantities(make) for name, (_, make, _) in QUANTITIES.items()},
    **{name: _with_tool(tool) for name, tool in TOOLS.items()},
}

if __name__ == "__main__":
    main()
