"""Recordings crossed with what may happen to one, and their reports.

Runs of other lengths, steps that were skipped, rows several steps apart, a part of the tokens, one run, no
dead tokens; read by the safetensors library and torch.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flannel_pl
from tests.analysis.samples import Array

DIM = 4
DEAD = [0, 1, 2, 4, 5, 7, 9]


@dataclass(frozen=True)
class Case:
    """What a recording is like."""

    dtype: torch.dtype
    num_rows: tuple[int, ...] = (170, 170, 170)
    every: int = 1
    num_tokens: int = 11
    dead: tuple[int, ...] = tuple(DEAD)
    skips: bool = False
    is_part: bool = False
    seed: int = 1

    @property
    def has_standstill(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float32)


CASES = {
    "bfloat16": Case(torch.bfloat16),
    "float32, runs of other lengths": Case(torch.float32, (170, 125, 140)),
    "float16, every third step of some tokens": Case(torch.float16, (60, 60, 50), every=3, is_part=True),
    "float64, steps skipped": Case(torch.float64, (170, 150), skips=True),
    "bfloat16, steps skipped, some tokens, a run cut short": Case(
        torch.bfloat16, (170, 8, 170), skips=True, is_part=True, seed=2
    ),
    "float32, every fifth step": Case(torch.float32, (40, 31), every=5),
    "one run": Case(torch.bfloat16, (170,)),
    "no dead tokens": Case(torch.float32, (130, 170), dead=()),
    "a thousand steps": Case(torch.bfloat16, (1001, 1001, 900)),
    "two rows": Case(torch.float32, (2, 2)),
    "as many dead tokens as published": Case(
        torch.bfloat16, (3, 3, 3), every=500, num_tokens=3702, dead=tuple(range(3699))
    ),
}


def radius(step: Array, draw: np.random.Generator) -> Array:
    """Inhale, sneeze, re-expansion, rest."""
    again = draw.uniform(0.05, 0.15) / (1 + np.exp((draw.uniform(70, 85) - step) / 5))
    sneeze = 0.3 / (1 + np.exp((24.5 + draw.normal() - step) / 4))
    found: Array = 0.16 - 0.01 * np.exp(-((step - 2.5) ** 2) / 2) + sneeze + again
    return found


def make(path: Path, case: Case) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    for run, num_rows in enumerate(case.num_rows):
        draw = np.random.default_rng(100 * case.seed + run)
        steps = np.arange(num_rows) * case.every
        way = draw.normal(0, 0.5, (case.num_tokens, DIM)) + np.array([0.8, 0, 0, 0])
        W = radius(steps, draw)[:, None, None] * way + draw.normal(0, 1e-5, (num_rows, case.num_tokens, DIM))
        skipped = draw.random(num_rows) < (0.08 if case.skips else 0)
        skipped[0] = False
        for row in range(1, num_rows):
            rests = np.arange(case.num_tokens) * 3 + 105 + run < steps[row]
            rests[3] = False  # moves to the end
            rests |= skipped[row]
            W[row, rests] = W[row - 1, rests]
        tensors[f"run_{run}_embeddings"] = torch.from_numpy(W).to(case.dtype)
        tensors[f"run_{run}_recorded_steps"] = torch.from_numpy(steps)
        loss = torch.from_numpy(draw.random(num_rows).astype(np.float32))
        loss[0] = math.nan
        tensors[f"run_{run}_losses_f32"] = loss
        if case.skips:
            tensors[f"run_{run}_skipped"] = torch.from_numpy(skipped)
        if case.is_part:
            tensors[f"run_{run}_recorded_tokens"] = torch.arange(case.num_tokens) * 2
    ids = [token * 2 if case.is_part else token for token in case.dead]
    dead_mask = torch.zeros(case.num_tokens * (2 if case.is_part else 1), dtype=torch.bool)
    dead_mask[ids] = True
    tensors |= {"dead_mask": dead_mask, "live_mask": ~dead_mask}
    own = {"embeddings": str(case.dtype).removeprefix("torch.")}
    runs = [{"index": run, "seed": 42 + run, "own_dtypes": own} for run in range(len(case.num_rows))]
    save_file(tensors, path, metadata={"flannel": json.dumps({"schema": 1, "name": "sample", "runs": runs})})
    return path


@dataclass
class Run:
    """One run's weights, and what the tables of metrics say of them."""

    W: Array
    bits: Array
    steps: list[int]
    skipped: list[bool]
    loss: list[float]
    has_standstill: bool

    def __post_init__(self) -> None:
        norm, center = np.linalg.norm, self.W.mean(axis=1)
        self.is_taken = [not skips for skips in self.skipped]
        self.radius: list[float] = norm(self.W, axis=2).mean(axis=1).tolist()
        apart = norm(self.W - center[:, None], axis=2)
        moved = [math.nan, *norm(np.diff(self.W, axis=0), axis=2).mean(axis=1).tolist()]
        frozen = [math.nan, *(self.bits[1:] == self.bits[:-1]).all(axis=2).mean(axis=1).tolist()]
        path = [0.0, *np.cumsum(norm(np.diff(center, axis=0), axis=1)).tolist()]
        drift = norm(center - center[0], axis=1)
        self.metrics = {
            "origin_radius": self.radius,
            "centroid_radius": apart.mean(axis=1).tolist(),
            "bounding_radius": apart.max(axis=1).tolist(),
            "centroid_norm": norm(center, axis=1).tolist(),
            "std_per_dim": self.W.std(axis=1).mean(axis=1).tolist(),
            "path_efficiency": [d / p if p else math.nan for d, p in zip(drift, path, strict=True)],
            "token_speed": self.unless_skipped(moved),
        }
        if self.has_standstill:
            self.metrics["frozen_fraction"] = self.unless_skipped(frozen)

    def unless_skipped(self, values: list[float]) -> list[float]:
        return [x if taken else math.nan for x, taken in zip(values, self.is_taken, strict=True)]

    def freeze_steps(self) -> list[float]:
        """Of each token the step of its last change; infinite if that is the last step that was taken."""
        changed = (self.bits[1:] != self.bits[:-1]).any(axis=2)
        last_taken = max(step for step, taken in zip(self.steps, self.is_taken, strict=True) if taken)
        found = [
            max((self.steps[k + 1] for k in np.flatnonzero(changed[:, token])), default=0)
            for token in range(changed.shape[1])
        ]
        return [math.inf if step == last_taken else float(step) for step in found]


def runs_of(file: Path, case: Case, tokens: list[int]) -> list[Run]:
    found = []
    with safe_open(file, framework="pt") as there:
        for run, num_rows in enumerate(case.num_rows):
            W = there.get_tensor(f"run_{run}_embeddings")[:, tokens]
            bits = W.contiguous().view(torch.uint8).numpy()
            skipped = there.get_tensor(f"run_{run}_skipped").tolist() if case.skips else [False] * num_rows
            steps = there.get_tensor(f"run_{run}_recorded_steps").tolist()
            loss = there.get_tensor(f"run_{run}_losses_f32").double().tolist()
            found.append(Run(W.double().numpy(), bits, steps, skipped, loss, case.has_standstill))
    return found


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def close(cell: str, value: float | None) -> None:
    if value is None or not math.isfinite(value):
        assert cell == ""
    else:
        assert math.isclose(float(cell), value, rel_tol=1e-9, abs_tol=1e-15), (cell, value)


@dataclass(frozen=True)
class Made:
    """A recording and its report."""

    case: Case
    file: Path
    report: Path
    group: str
    suffix: str = ""

    def runs(self, one: str) -> list[Run]:
        tokens = {"dead": list(self.case.dead), "all": list(range(self.case.num_tokens))}
        tokens["live"] = [token for token in tokens["all"] if token not in self.case.dead]
        return runs_of(self.file, self.case, tokens[one])

    def sets(self) -> list[str]:
        return ["dead", "live", "all"] if self.case.dead else ["live", "all"]

    def lines(self, name: str) -> list[dict[str, str]]:
        return [line for line in lines_of(self.report / name) if line["group"] == self.group]

    def separation(self, one: str) -> list[list[float]] | None:
        if one != "all" or not self.case.dead:
            return None
        both = zip(self.runs("dead"), self.runs("live"), strict=True)
        return [np.linalg.norm(a.W.mean(axis=1) - b.W.mean(axis=1), axis=1).tolist() for a, b in both]


def report(*files: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flannel_pl.analysis.reporting.report.GALLERY", ())  # no figures
        flannel_pl.report(*files, out=out)
