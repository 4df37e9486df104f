"""Every column of a report's tables, computed once more: from the file's bytes, in float64, by other means.

Nothing of the package computes here: weights are read by the safetensors library and torch, signs are
those of exact fractions, spacings come from torch.nextafter, Adam's step is taken by torch's own operations.
"""

import csv
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flannel_pl
from tests.analysis.samples import Array

NUM_ROWS, NUM_TOKENS, DIM, NUM_RUNS = 14, 22, 8, 3
DEAD = [0, 1, 2, 3, 4, 9, 10, 15]
BETA1, BETA2, EPSILON, DECAY = 0.9, 0.999, 1e-8, 0.1
EDGES = [0.0, *(2.0**k for k in range(-1, 25)), math.inf]

Table = dict[str, list[float]]


@dataclass(frozen=True)
class Kind:
    """What a recording's tensors are stored in, and what the weights were while they were trained."""

    trained: torch.dtype
    stored: torch.dtype

    @property
    def is_whole(self) -> bool:
        """Whether the lattice of the weights is known, and every bit of them recorded."""
        return self not in (Kind(torch.float32, torch.bfloat16), Kind(torch.float64, torch.float64))

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.trained, self.stored)]
        return " recorded as ".join(dict.fromkeys(names))


KINDS = [
    Kind(torch.bfloat16, torch.bfloat16),
    Kind(torch.float32, torch.float32),
    Kind(torch.bfloat16, torch.float32),
    Kind(torch.float32, torch.bfloat16),
    Kind(torch.float64, torch.float64),
    Kind(torch.float32, torch.float64),
]


def adam_step(W: Any, m: Any, v: Any, *, step: int, rate: float) -> Any:
    """Torch's own operations, as its AdamW takes them one by one, with roots that are rightly rounded."""
    W = W.clone().mul_(1 - rate * DECAY)
    denominator = (v.double().sqrt().to(v.dtype) / (1 - BETA2**step) ** 0.5).add_(EPSILON)
    return W.addcdiv_(m, denominator, value=-(rate / (1 - BETA1**step)))


def rate_of(row: int) -> float:
    """That of the linear schedule, as the config has it."""
    return 1e-3 * ((NUM_ROWS - row) / (NUM_ROWS - 1))


def train(seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Some tokens do what Adam would, others what is awkward to measure."""
    draw = torch.Generator().manual_seed(seed)

    def normal(scale: float, *size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=draw) * scale).to(dtype)

    W = normal(0.02, NUM_TOKENS, DIM)
    W[5], W[6], W[7, 0] = 0.0, normal(1e-30, DIM), 0.0
    if seed == 2:  # so large that of the others nothing is left in a sum
        W[8] = normal(1e25, DIM)
    rows = {name: [torch.zeros_like(W)] for name in ("grads", "momentum", "variance")}
    rows["embeddings"] = [W]
    for row in range(1, NUM_ROWS):
        grads, m = normal(1e-3, NUM_TOKENS, DIM), normal(1e-3, NUM_TOKENS, DIM)
        v = normal(1e-3, NUM_TOKENS, DIM) ** 2 + torch.tensor(1e-8, dtype=dtype)
        after = adam_step(W, m, v, step=row, rate=rate_of(row))
        grads[11] = 0
        after[0] = W[0]  # frozen from the start
        after[1] = W[1] if row > 4 else after[1]
        after[2] = W[2].roll(1)  # moves, and is exactly as far from the origin as before
        after[3] = -W[3]
        after[4] = W[4].flip(0) if row % 3 else W[4]
        after[6] = W[6] * (1 + row * 2.0**-7)
        after[8] = W[8] * 1.125
        after[9] = torch.nextafter(W[9], torch.full_like(W[9], math.inf))  # a hop in every component
        after[10] = W[10].roll(3)
        after[10, row % DIM] = torch.nextafter(after[10, row % DIM], torch.tensor(0.0, dtype=dtype))
        after[17] = torch.nextafter(W[17], W[17] * (2 if row % 2 else 0))  # far less than its own size
        after[12:14] = -after[12:14] if row == 5 else W[12:14]
        if row > 7:
            after[14:17] = W[14:17]
        W = after
        for name, value in (("grads", grads), ("momentum", m), ("variance", v), ("embeddings", W)):
            rows[name].append(value.clone())
    return {name: torch.stack(values) for name, values in rows.items()}


def make(folder: Path, kind: Kind) -> Path:
    """Writes a gathered file with a config, by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    model = {"param_dtype": str(kind.trained).removeprefix("torch."), "weight_decay": DECAY}
    model |= {"adam_beta1": BETA1, "adam_beta2": BETA2, "adam_epsilon": EPSILON, "learning_rate": 1e-3}
    config = {"model": model, "trainer": {"max_steps": NUM_ROWS - 1}}
    draw = torch.Generator().manual_seed(99)
    for run in range(NUM_RUNS):
        trained = train(run, kind.trained)
        tensors |= {f"run_{run}_{name}": values.to(kind.stored) for name, values in trained.items()}
        tensors[f"run_{run}_recorded_steps"] = torch.arange(NUM_ROWS)
        for name in ("losses_f32", "grad_norms"):
            values = torch.rand(NUM_ROWS, generator=draw) + 1
            values[0] = math.nan
            tensors[f"run_{run}_{name}"] = values
        rates = torch.tensor([math.nan, *map(rate_of, range(1, NUM_ROWS))])
        tensors[f"run_{run}_learning_rates"] = rates
    dead = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    dead[DEAD] = True
    tensors |= {"dead_mask": dead, "live_mask": ~dead}
    runs = [{"index": run, "seed": 42 + run, "swept": {}, "config": config} for run in range(NUM_RUNS)]
    metadata = {"flannel": json.dumps({"schema": 1, "name": "sample", "config": config, "runs": runs})}
    save_file(tensors, folder / "sample.safetensors", metadata=metadata)
    return folder / "sample.safetensors"


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@dataclass(frozen=True)
class Made:
    """A recording, and its report."""

    kind: Kind
    file: Path
    report: Path

    def lines(self, name: str) -> list[dict[str, str]]:
        with (self.report / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def tensor(self, run: int, name: str) -> Any:
        with safe_open(self.file, framework="pt") as there:
            return there.get_tensor(f"run_{run}_{name}")


@pytest.fixture(scope="module")
def made(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("columns")
    file = make(folder, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flannel_pl.analysis.reporting.report.GALLERY", ())
        flannel_pl.report(file, out=folder / "report")
    return Made(kind, file, folder / "report")


SETS = {
    "dead": DEAD,
    "live": [token for token in range(NUM_TOKENS) if token not in DEAD],
    "all": list(range(NUM_TOKENS)),
}


def spacing(W: Any) -> Array:
    """The distance to the next number of W's type away from zero, float64."""
    size = W.abs()
    up = torch.nextafter(size, torch.full_like(size, math.inf))
    found: Array = (up.double() - size.double()).numpy()
    return found


def exact_square(w_D: Array) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in w_D), Fraction(0))


def measured_rows(made: Made, run: int, tokens: list[int]) -> Table:
    """Every metric of a set of tokens, a number for each row; NaN in row 0 where it is of motion."""
    W_R = made.tensor(run, "embeddings")[:, tokens]
    rows = W_R.double().numpy()
    table: Table = {}

    def add(name: str, value: Any) -> None:
        table.setdefault(name, []).append(float(value))

    norm = np.linalg.norm
    path = 0.0
    for k, W in enumerate(rows):
        c = W.mean(axis=0)
        add("origin_radius", np.mean(norm(W, axis=1)))
        add("centroid_radius", np.mean(norm(W - c, axis=1)))
        add("bounding_radius", np.max(norm(W - c, axis=1)))
        add("std_per_dim", np.mean(np.std(W, axis=0)))
        add("centroid_norm", norm(c))
        add("centroid_drift", norm(c - rows[0].mean(axis=0)))
        if k == 0:
            add("path_efficiency", math.nan)
            continue
        before, dW = rows[k - 1], W - rows[k - 1]
        dc = c - before.mean(axis=0)
        path += float(norm(dc))
        add("path_efficiency", norm(c - rows[0].mean(axis=0)) / path if path else math.nan)
        lengths = norm(dW, axis=1)
        add("token_speed", np.mean(lengths))
        add("centroid_speed", norm(dc))
        add("thermal_speed", np.mean(norm(dW - dc, axis=1)))
        cosines = [
            dw @ w / norm(w) / norm(dw) for w, dw in zip(before, dW, strict=True) if dw.any() and w.any()
        ]
        add("radial_fraction", np.mean(cosines) if cosines else math.nan)
        add("abs_radial_fraction", np.mean(np.abs(cosines)) if cosines else math.nan)
        change = [exact_square(after) - exact_square(w) for w, after in zip(before, W, strict=True)]
        add("outward_fraction", np.mean([x > 0 for x in change]))
        add("inward_fraction", np.mean([x < 0 for x in change]))
        add("zero_fraction", np.mean([x == 0 for x in change]))
        gradient = made.tensor(run, "grads")[k, tokens].double().numpy()
        cosines = [
            g @ dw / norm(g) / norm(dw) for g, dw in zip(gradient, dW, strict=True) if g.any() and dw.any()
        ]
        add("cos_grad_step", np.median(cosines) if cosines else math.nan)
    return table


def of_the_lattice(made: Made, run: int, tokens: list[int]) -> Table:
    """What only weights tell that are recorded as they were trained."""
    W_R = made.tensor(run, "embeddings")[:, tokens].to(made.kind.trained)
    moments = [made.tensor(run, name)[:, tokens].to(made.kind.trained) for name in ("momentum", "variance")]
    table: Table = {}

    def add(name: str, value: Any) -> None:
        table.setdefault(name, []).append(float(value))

    for k in range(1, NUM_ROWS):
        before, after = W_R[k - 1], W_R[k]
        dW, ulp = after.double().numpy() - before.double().numpy(), spacing(before)
        steps = np.abs(dW / ulp)
        add("lattice_l1", np.mean(steps.sum(axis=1)))
        add("lattice_l2", np.mean(np.sqrt((steps**2).sum(axis=1))))
        add("lattice_linf", np.mean(steps.max(axis=1)))
        lengths = np.sqrt((dW**2).sum(axis=1))
        hop = (lengths > 0) & (lengths <= 8 * ulp.mean(axis=1))
        add("lattice_hop_fraction", hop.mean())
        add("thermal_hop_fraction", ((lengths > 0) & ~hop).mean())
        add("zero_component_fraction", (dW == 0).mean())
        same_bits = [
            x.numpy().tobytes() == y.numpy().tobytes()
            for x, y in zip(before.view(torch.uint8), after.view(torch.uint8), strict=True)
        ]
        add("frozen_fraction", np.mean(same_bits))
        predicted = adam_step(before, *(x[k] for x in moments), step=k, rate=rate_of(k))
        add("adam_exact_fraction", (predicted == after).double().mean())
        near = predicted == after
        for end in (math.inf, -math.inf):
            near |= torch.nextafter(predicted, torch.full_like(predicted, end)) == after
        add("adam_within_one_fraction", near.double().mean())
    return table


def same(found: list[float], expected: list[float], name: str) -> None:
    """Fractions of tokens or components are exact, all else to a millionth."""
    is_exact = name.endswith("_fraction") and "radial" not in name
    np.testing.assert_allclose(found, expected, rtol=1e-15 if is_exact else 1e-6, atol=0, err_msg=name)


@pytest.mark.parametrize("run", range(NUM_RUNS))
@pytest.mark.parametrize("token_set", SETS)
def test_metrics(made: Made, run: int, token_set: str) -> None:
    lines = [x for x in made.lines("metrics.csv") if (x["run"], x["set"]) == (str(run), token_set)]
    assert [int(line["step"]) for line in lines] == list(range(NUM_ROWS))
    expected = measured_rows(made, run, SETS[token_set])
    if made.kind.is_whole:
        expected |= of_the_lattice(made, run, SETS[token_set])
    if token_set == "all":
        for name, column in (
            ("loss", "losses_f32"),
            ("learning_rate", "learning_rates"),
            ("grad_norm", "grad_norms"),
        ):
            expected[name] = made.tensor(run, column)[1:].double().tolist()
        live, dead = (
            made.tensor(run, "embeddings")[:, SETS[one]].double().mean(dim=1) for one in ("live", "dead")
        )
        expected["separation"] = (live - dead).norm(dim=1).tolist()
    known = {"run", "label", "set", "step"}
    unknown = {name for name in lines[0] if any(line[name] for line in lines)} - known - expected.keys()
    assert not unknown, "columns that nothing here computes"
    for name, values in expected.items():
        found = [float(line[name] or "nan") for line in lines]
        if len(values) < NUM_ROWS:
            assert math.isnan(found.pop(0)), f"{name} has a value in row 0"
        same(found, values, name)


def test_tokens(made: Made) -> None:
    lines = made.lines("tokens.csv")
    if not made.kind.is_whole:
        assert not lines
        return
    for run in range(NUM_RUNS):
        W_R = made.tensor(run, "embeddings").to(made.kind.trained)
        for line in (x for x in lines if x["run"] == str(run)):
            token, ends = int(line["token"]), {"early": 0, "midlife": 0, "late": 0, "bits": 0}
            assert line["dead"] == str(int(token in DEAD))
            for k in range(1, NUM_ROWS):
                before, after = W_R[k - 1, token], W_R[k, token]
                steps = np.abs((after.double() - before.double()).numpy() / spacing(before))
                did = {"early": math.sqrt((steps**2).sum()) > math.sqrt(DIM), "midlife": steps.max() > 1}
                did |= {
                    "late": steps.any(),
                    "bits": not torch.equal(before.view(torch.uint8), after.view(torch.uint8)),
                }
                ends |= {name: k for name, value in did.items() if value}
            midlife = max(ends["early"], ends["midlife"])
            found = tuple(int(line[name]) for name in ("freeze_step", "early_end", "midlife_end", "late_end"))
            frozen = -1 if ends["bits"] == NUM_ROWS - 1 else ends["bits"]
            assert found == (frozen, ends["early"], midlife, max(midlife, ends["late"]))


def test_means_over_runs(made: Made) -> None:
    for one in SETS:
        lines = made.lines(f"steps_{one}.csv")
        runs = [
            [x for x in made.lines("metrics.csv") if (x["run"], x["set"]) == (str(run), one)]
            for run in range(NUM_RUNS)
        ]
        names = {name.removesuffix("_mean") for name in lines[0] if name.endswith("_mean")}
        assert set(lines[0]) == {
            "group",
            "step",
            *(f"{name}_{what}" for name in names for what in ("mean", "std")),
        }
        for name in names:
            for row, line in enumerate(lines):
                values = [float(run[row][name]) for run in runs if run[row][name]]
                mean, std = (float(line[f"{name}_{what}"] or "nan") for what in ("mean", "std"))
                center = math.fsum(values) / len(values) if values else math.nan
                squares = math.fsum((x - center) ** 2 for x in values)
                spread = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
                scale = max(map(abs, values), default=1.0)
                np.testing.assert_allclose(mean, center, rtol=1e-6, atol=1e-8 * scale, err_msg=name)
                np.testing.assert_allclose(std, spread, rtol=1e-6, atol=1e-8 * scale, err_msg=name)


def test_distances(made: Made) -> None:
    rows = [made.tensor(run, "embeddings").double().numpy() for run in range(NUM_RUNS)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    for one, tokens in SETS.items():
        for k, line in enumerate(x for x in made.lines("distances.csv") if x["set"] == one):
            apart = [np.linalg.norm(rows[a][k, tokens] - rows[b][k, tokens]) for a, b in pairs]
            own = [np.linalg.norm(row[k, tokens] - row[0, tokens]) for row in rows]
            expected = {
                **{"distance_mean": np.mean(apart), "distance_std": np.std(apart, ddof=1)},
                **{"distance_least": min(apart), "distance_most": max(apart)},
                **{"evolution_mean": np.mean(own), "evolution_std": np.std(own, ddof=1)},
                "ratio": np.mean(apart) / np.mean(own) if k else math.nan,
            }
            assert expected.keys() | {"group", "set", "step"} == line.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(float(line[name] or "nan"), value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["adam_exact_fraction", "adam_within_one_fraction"])
def test_key_figures_of_the_optimizer(made: Made, name: str) -> None:
    for one, tokens in SETS.items():
        lines = [x for x in made.lines(f"key_figures_{one}_by_run.csv") if x["figure"].startswith(name)]
        if not made.kind.is_whole:
            assert not lines
            continue
        assert {line["figure"] for line in lines} == {f"{name}, mean over steps"}
        expected = [np.mean(of_the_lattice(made, run, tokens)[name]) for run in range(NUM_RUNS)]
        np.testing.assert_allclose([float(line["value"]) for line in lines], expected, rtol=1e-12)
