"""Factorials: what each factor does by itself, and what several do only together.

Ordinary least squares on sum-to-zero columns: of each factor with k levels k - 1, of an interaction their
products; with blocks (the seeds, where every cell was run with the same ones) those of the blocks too. An
effect's sum of squares is how much larger the residuals get without its columns:

- III: all others stay. An effect is about means over cells, each cell counting alike.
- II: only those stay that do not contain the effect. More power where there is no interaction.

Both are the same where every cell has as many runs. F = (SS / df) / (residual SS / residual df). The p that
counts is of permutations of the residuals of the model without the effect (Freedman and Lane), within blocks
where there are some; that of the F distribution, which asks for normal residuals, stands beside it.

Source: Freedman, Lane, J. Bus. Econ. Statist. 1 (1983) 292; Searle, Linear Models for Unbalanced Data (1987).

Shape suffixes: N runs, K columns, P permutations.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flannel_pl.analysis.statistics.corrections import holm
from flannel_pl.analysis.statistics.intervals import finite
from flannel_pl.arrays import Array

PERMUTATIONS = 4999
_CONSTANT = 1e-18
"""Residuals whose squares are a smaller part of all are rounding."""

Level = Hashable
Sums = Literal["II", "III"]


@dataclass(frozen=True)
class FactorEffect:
    """A main effect, or an interaction."""

    factors: tuple[str, ...]
    freedom: int
    sum_of_squares: float
    f: float
    p: float
    """By permutation of residuals."""

    p_f: float
    """By the F distribution."""

    p_holm: float
    """`p`, corrected over all effects of the table."""

    partial_eta_squared: float
    """Its part of what it and the residuals make up; at least 0 by construction, so biased upwards."""

    partial_omega_squared: float
    """The same without that bias; may be below 0 where there is nothing."""

    @property
    def name(self) -> str:
        """E.g. `rate x decay`."""
        return " x ".join(self.factors)


@dataclass(frozen=True)
class FactorialTable:
    """What the factors of a factorial do."""

    effects: tuple[FactorEffect, ...]
    """Main effects, then interactions of two, of three, ..."""

    residual_freedom: int
    residual_sum_of_squares: float
    balanced: bool
    sums: str
    marginal_means: dict[str, dict[Level, float]]
    """Factor -> level -> mean of the means of its cells, each cell counting alike."""

    cell_sizes: dict[tuple[Level, ...], int]
    """Levels, in the order of the factors -> runs."""

    def rows(self) -> list[dict[str, str | float | int]]:
        """Returns a line of a table for each effect."""
        return [
            {
                "effect": one.name,
                "df": one.freedom,
                "residual_df": self.residual_freedom,
                "sum_of_squares": one.sum_of_squares,
                "F": one.f,
                "p": one.p,
                "p_F": one.p_f,
                "p_holm": one.p_holm,
                "partial_eta_squared": one.partial_eta_squared,
                "partial_omega_squared": one.partial_omega_squared,
            }
            for one in self.effects
        ]


def factorial(
    values: Sequence[float] | Array,
    factors: Mapping[str, Sequence[Level]],
    *,
    blocks: Sequence[Level] | None = None,
    sums: Sums = "III",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> FactorialTable:
    """Finds main effects and all interactions of a factorial.

    Args:
        values: One number a run.
        factors: Name -> level of each run, in the same order.
        blocks: Of each run what it shares with runs of other cells, e.g. its seed; None: nothing.
        sums: II or III, see above.
        permutations: Of residuals.
        seed: Of their random order.

    Raises:
        ValueError: If a value is not finite, a factor has one level, a cell has no run, or there are no
            residuals to hold effects against.

    Example:
        >>> values = [1.0, 1.1, 2.0, 2.1, 1.0, 1.2, 2.1, 2.2]
        >>> table = factorial(values, {"rate": [1, 1, 2, 2] * 2, "decay": [0] * 4 + [1] * 4})
        >>> [(effect.name, round(effect.f, 1)) for effect in table.effects]
        [('rate', 240.1), ('decay', 1.3), ('rate x decay', 0.1)]
    """
    values_N = finite(values)
    levels = _levels(len(values_N), factors, blocks)
    cells = list(zip(*factors.values(), strict=True))
    sizes = {cell: cells.count(cell) for cell in itertools.product(*levels.values())}
    if empty := [cell for cell, size in sizes.items() if not size]:
        raise ValueError(f"got no run with {tuple(factors)} = {empty[0]}, expected one or more in every cell")
    columns: dict[tuple[str, ...], Array] = {
        (name,): _sum_columns(factors[name], levels[name]) for name in factors
    }
    terms = [term for count in range(1, len(factors) + 1) for term in itertools.combinations(factors, count)]
    for term in terms[len(factors) :]:
        columns[term] = _products(columns[term[:-1]], columns[term[-1:]])
    always = [np.ones((len(values_N), 1))]
    if blocks is not None:
        always.append(_sum_columns(blocks, list(dict.fromkeys(blocks))))
    model = _Model(values_N, columns, always, blocks)
    effects = [model.effect(term, sums, permutations, seed) for term in terms]
    corrected = holm([one.p for one in effects])
    return FactorialTable(
        tuple(replace(one, p_holm=float(p or 0)) for one, p in zip(effects, corrected, strict=True)),
        *(model.freedom, model.rss, len(set(sizes.values())) == 1, sums),
        _marginal_means(values_N, cells, levels),
        sizes,
    )


def factorial_of_arms(
    values: Mapping[str, Mapping[int, float]],
    levels: Mapping[str, Mapping[str, Level]],
    *,
    sums: Sums = "III",
    permutations: int = PERMUTATIONS,
) -> FactorialTable:
    """Finds what the factors of an experiment's arms do; seeds are blocks where most of them are shared.

    That is, where at least half of the seeds are of two arms or more; a run may be missing here and there.

    Args:
        values: Arm -> seed -> number; runs without one are left out.
        levels: Arm -> factor -> its level.
        sums: As of `factorial`, and so are `permutations`.
        permutations: Of residuals.

    Raises:
        ValueError: As of `factorial`.

    Example:
        >>> values = {"a": {1: 1.0, 2: 1.5, 3: 0.9}, "b": {1: 3.0, 2: 3.6, 3: 2.8}}
        >>> table = factorial_of_arms(values, {"a": {"rate": 0.1}, "b": {"rate": 0.2}})
        >>> table.effects[0].name, table.residual_freedom
        ('rate', 2)
    """
    runs = [
        (arm, seed, number)
        for arm, by_seed in values.items()
        for seed, number in sorted(by_seed.items())
        if np.isfinite(number)
    ]
    times = Counter(seed for _, seed, _ in runs)
    shared = len(times) > 1 and 2 * sum(count > 1 for count in times.values()) >= len(times)
    names = list(next(iter(levels.values())))
    return factorial(
        [number for _, _, number in runs],
        {name: [levels[arm][name] for arm, _, _ in runs] for name in names},
        blocks=[seed for _, seed, _ in runs] if shared else None,
        sums=sums,
        permutations=permutations,
    )


class _Model:
    """Least squares with and without some columns."""

    def __init__(
        self,
        values_N: Array,
        columns: Mapping[tuple[str, ...], Array],
        always: Sequence[Array],
        blocks: Sequence[Level] | None,
    ) -> None:
        self._values_N, self._columns, self._always, self._blocks = values_N, columns, always, blocks
        self._full = self._basis(columns)
        self.freedom = len(values_N) - self._full.shape[1]
        if self.freedom < 1:
            raise ValueError(
                f"got {len(values_N)} runs for {self._full.shape[1]} numbers of the model, expected more "
                "runs: residuals are what effects are held against"
            )
        self.rss = float(np.square(values_N - self._full @ (self._full.T @ values_N)).sum())
        if self.rss <= _CONSTANT * float(np.square(values_N).sum()):
            self.rss = 0.0

    def effect(self, term: tuple[str, ...], sums: Sums, permutations: int, seed: int) -> FactorEffect:
        """Holds one effect's columns against the residuals."""
        from scipy import stats

        others = [one for one in self._columns if one != term]
        if sums == "II":
            others = [one for one in others if not set(one) > set(term)]
        without, within = self._basis(others), self._basis([*others, term])
        freedom = self._columns[term].shape[1]
        projected = float(np.square(within.T @ self._values_N).sum())
        squares = max(0.0, projected - float(np.square(without.T @ self._values_N).sum()))
        if squares <= _CONSTANT * float(np.square(self._values_N).sum()):
            squares = 0.0
        f = _ratio(squares / freedom, self.rss / self.freedom)
        variance = self.rss / self.freedom
        total = squares + self.rss
        omega_below = squares + variance * (len(self._values_N) - freedom)
        return FactorEffect(
            *(term, freedom, squares, f, self._permuted_p(without, within, freedom, f, permutations, seed)),
            p_f=float(stats.f.sf(f, freedom, self.freedom)),
            p_holm=1.0,
            partial_eta_squared=squares / total if total else 0.0,
            partial_omega_squared=(squares - freedom * variance) / omega_below if omega_below else 0.0,
        )

    def _permuted_p(
        self, without: Array, within: Array, freedom: int, f: float, permutations: int, seed: int
    ) -> float:
        """Permutes the residuals of the model without the effect, and tests the effect in each."""
        if not f > 0:
            return 1.0
        fitted_N = without @ (without.T @ self._values_N)
        residual_N = self._values_N - fitted_N
        random = np.random.default_rng(seed)
        if self._blocks is None:
            shuffled_PN = random.permuted(np.tile(residual_N, (permutations, 1)), axis=1)
        else:
            shuffled_PN = np.tile(residual_N, (permutations, 1))
            names = np.array([list(dict.fromkeys(self._blocks)).index(one) for one in self._blocks])
            for block in range(names.max() + 1):
                members = names == block
                shuffled_PN[:, members] = random.permuted(shuffled_PN[:, members], axis=1)
        # The fitted part lies in both models, so that only the residuals tell them apart.
        all_P = np.square(shuffled_PN).sum(axis=1)
        effect_P = np.square(shuffled_PN @ within).sum(axis=1) - np.square(shuffled_PN @ without).sum(axis=1)
        rest_P = np.maximum(all_P - np.square(shuffled_PN @ self._full).sum(axis=1), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            f_P = np.where(effect_P > 0, (effect_P / freedom) / (rest_P / self.freedom), 0)
        return float((1 + (f_P >= f * (1 - 1e-10)).sum()) / (1 + permutations))

    def _basis(self, terms: Mapping[tuple[str, ...], Array] | Sequence[tuple[str, ...]]) -> Array:
        """Returns an orthonormal basis of what some terms and the constant columns span, (N, K)."""
        design_NK = np.hstack([*self._always, *(self._columns[term] for term in terms)])
        basis_NK, triangle_KK = np.linalg.qr(design_NK)
        if (np.abs(np.diag(triangle_KK)) < 1e-10).any():
            raise ValueError("got factors or blocks that say the same, expected each to vary by itself")
        return basis_NK


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("inf") if above else 0.0


def _levels(
    num: int, factors: Mapping[str, Sequence[Level]], blocks: Sequence[Level] | None
) -> dict[str, list[Level]]:
    for name, column in {**factors, **({} if blocks is None else {"blocks": blocks})}.items():
        if len(column) != num:
            raise ValueError(f"got {len(column)} levels of {name} for {num} runs, expected one a run")
        if len(set(column)) < 2:
            raise ValueError(f"got {len(set(column))} level of {name}, expected two or more")
    return {name: list(dict.fromkeys(column)) for name, column in factors.items()}


def _sum_columns(column: Sequence[Level], levels: Sequence[Level]) -> Array:
    """Returns k - 1 columns of k levels: 1 at its own level, -1 at the last, else 0."""
    own = np.array([[float(one == level) for level in levels] for one in column])
    columns: Array = own[:, :-1] - own[:, -1:]
    return columns


def _products(left_NK: Array, right_NK: Array) -> Array:
    products: Array = np.einsum("nk,nl->nkl", left_NK, right_NK).reshape(len(left_NK), -1)
    return products


def _marginal_means(
    values_N: Array, cells: Sequence[tuple[Level, ...]], levels: Mapping[str, Sequence[Level]]
) -> dict[str, dict[Level, float]]:
    by_cell = {
        cell: float(np.mean([value for one, value in zip(cells, values_N, strict=True) if one == cell]))
        for cell in set(cells)
    }
    return {
        name: {
            level: float(np.mean([mean for cell, mean in by_cell.items() if cell[place] == level]))
            for level in ordered
        }
        for place, (name, ordered) in enumerate(levels.items())
    }
