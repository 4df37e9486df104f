"""Other people's models and optimizers: every row has the bits that a plain torch loop with hooks sees."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from flannel_pl import StepRecorder
from tests.training.foreign_models import CASES, Case, Module, build, optimizer_of
from tests.training.test_recorder import batches, fit

STEPS = 6


def plain_loop(case: Case) -> Iterator[dict[str, Tensor]]:
    """What each row should hold."""
    net = build(case)
    optimizer, source = optimizer_of(case, net), iter(batches(64))
    weight = dict(net.named_parameters(remove_duplicate=False))[case.name]
    accumulate = case.trainer.get("accumulate_grad_batches", 1)
    clip, by = case.trainer.get("gradient_clip_val"), case.trainer.get("gradient_clip_algorithm", "norm")
    scheduler: Any = None
    if not isinstance(optimizer.param_groups[0]["lr"], Tensor):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(STEPS):
        row: dict[str, Tensor] = {"losses_f32": torch.zeros(())}
        optimizer.zero_grad()
        for number in range(accumulate):
            batch = next(source)
            mixed = case.trainer.get("precision") == "bf16-mixed"
            with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                logits_BV = net(batch[:, 0])
                loss = nn.functional.cross_entropy(logits_BV, batch[:, 1])
            (loss / accumulate).backward()
            row["losses_f32"] = row["losses_f32"] + loss.detach() / accumulate
            if number == 0:
                row["logits"] = logits_BV[0].detach().clone()
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad.detach()
        row["grads"] = (gradient.to_dense() if gradient.is_sparse else gradient).clone()
        squares = [
            (p.grad.to_dense() if p.grad.is_sparse else p.grad).double().square().sum()
            for p in net.parameters()
            if p.grad is not None and p.requires_grad
        ]
        row["grad_norms"] = torch.stack(squares).sum().sqrt()
        rates = [g["lr"] for g in optimizer.param_groups if any(p is weight for p in g["params"])]
        row["learning_rates"] = torch.as_tensor(rates[0] if rates else float("nan")).clone()
        in_order = [p for group in optimizer.param_groups for p in group["params"]]  # Lightning's own
        if clip and by == "value":
            nn.utils.clip_grad_value_(in_order, clip)
        elif clip:
            nn.utils.clip_grad_norm_(in_order, clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        row["embeddings"] = weight.detach().clone()
        kept = optimizer.state.get(weight, {})
        for name, key in (("momentum", "exp_avg"), ("variance", "exp_avg_sq")):
            row[name] = kept.get(key, torch.zeros_like(weight)).detach().clone()
        yield row


ONE_MOMENT = ("Adamax", "Lion", "Late")
NO_MOMENTS = (
    *("SGD", "SGD momentum", "sparse SGD", "branch SGD momentum", "RMSprop", "Adagrad", "Adadelta", "Rprop"),
    *("ASGD", "Adafactor", "sparse Adagrad", "Muon"),
)
"""Cases whose optimizers keep the first of Adam's moments only, or none of them."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_row_is_what_a_plain_loop_sees(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    recorder = StepRecorder(tmp_path, f"net.{case.name}")
    fit(recorder, steps=STEPS, module=Module(case), **{"gradient_clip_val": None, **case.trainer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = list(plain_loop(case))
    moments = (
        {"momentum"} if name in ONE_MOMENT else set() if name in NO_MOMENTS else {"momentum", "variance"}
    )
    with safe_open(tmp_path / "recording.safetensors", framework="pt") as recording:
        names = set(recording.keys())
        assert names & {"momentum", "variance"} == moments
        for tensor in ("embeddings", "grads", "logits", *moments):
            found = recording.get_tensor(tensor)[1:]
            truth = torch.stack([row[tensor] for row in expected])
            assert found.dtype == truth.dtype, tensor
            same = found.view(torch.uint8) == truth.view(torch.uint8)
            assert same.all(), f"{tensor} differs, first in step {1 + int((~same).nonzero()[0, 0])}"
        for tensor in ("losses_f32", "learning_rates"):
            truth = torch.stack([row[tensor].float() for row in expected])
            assert torch.equal(recording.get_tensor(tensor)[1:].nan_to_num(-1), truth.nan_to_num(-1)), tensor
        truth = torch.stack([row["grad_norms"].float() for row in expected])
        tolerance = 1e-2 if case.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(recording.get_tensor("grad_norms")[1:], truth, rtol=tolerance, atol=0)
