"""Factorials against statsmodels, balanced and not, and by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from flannel_pl.analysis.statistics.factorial import factorial, factorial_of_arms

Array = np.ndarray[Any, Any]
SHAPES: dict[str, list[Any]] = {"a": ["x", "y"], "b": [0.1, 0.2, 0.3], "c": [1, 2]}


def runs(num_factors: int, repeats: int, *, seed: int, lost: int = 0) -> tuple[Array, dict[str, list[Any]]]:
    """Makes a factorial, of which some runs may be lost."""
    names = list(SHAPES)[:num_factors]
    cells = [cell for cell in itertools.product(*(SHAPES[name] for name in names)) for _ in range(repeats)]
    random = np.random.default_rng(seed)
    kept = sorted(random.permutation(len(cells))[lost:])
    cells = [cells[place] for place in kept]
    values = random.normal(0, 1, len(cells)) + np.array(
        [2 * (cell[0] == "y") * (cell[1] == 0.3) for cell in cells]
    )
    return values, {name: [cell[place] for cell in cells] for place, name in enumerate(names)}


def by_statsmodels(values: Array, factors: dict[str, list[Any]], kind: int, *, blocks: Any = None) -> Any:
    frame = pd.DataFrame({**factors, "value": values})
    formula = "value ~ " + " * ".join(f"C({name}, Sum)" for name in factors)
    if blocks is not None:
        frame["block"] = blocks
        formula += " + C(block, Sum)"
    return anova_lm(smf.ols(formula, frame).fit(), typ=kind)


@pytest.mark.parametrize("sums", ["II", "III"])
@pytest.mark.parametrize(
    ("num_factors", "repeats", "lost"), [(1, 4, 1), (2, 3, 0), (2, 4, 5), (3, 2, 0), (3, 3, 6)]
)
def test_f_is_that_of_statsmodels(num_factors: int, repeats: int, lost: int, sums: Any) -> None:
    if num_factors == 1:
        values, both = runs(2, repeats, seed=1, lost=lost)
        factors = {"b": both["b"]}
    else:
        values, factors = runs(num_factors, repeats, seed=1, lost=lost)
    found = factorial(values, factors, sums=sums, permutations=99)
    expected = by_statsmodels(values, factors, 2 if sums == "II" else 3)
    for effect in found.effects:
        row = expected.loc[":".join(f"C({name}, Sum)" for name in effect.factors)]
        assert (effect.sum_of_squares, effect.f, effect.p_f) == pytest.approx(
            (row["sum_sq"], row["F"], row["PR(>F)"])
        )
        assert effect.freedom == row["df"]
    assert len(found.effects) == 2**num_factors - 1
    assert found.residual_sum_of_squares == pytest.approx(expected.loc["Residual", "sum_sq"])
    assert found.balanced == (lost == 0 and num_factors > 1)


def test_both_sums_are_one_where_cells_are_equal() -> None:
    values, factors = runs(2, 3, seed=2)
    two, three = (factorial(values, factors, sums=sums, permutations=9).effects for sums in ("II", "III"))
    assert [effect.f for effect in two] == pytest.approx([effect.f for effect in three])


def test_blocks_are_statsmodels_blocks() -> None:
    values, factors = runs(2, 4, seed=3)
    blocks = [place % 4 for place in range(len(values))]
    found = factorial(values + 5 * np.array(blocks), factors, blocks=blocks, permutations=999)
    expected = by_statsmodels(values + 5 * np.array(blocks), factors, 3, blocks=blocks)
    for effect in found.effects:
        row = expected.loc[":".join(f"C({name}, Sum)" for name in effect.factors)]
        assert (effect.f, effect.p_f) == pytest.approx((row["F"], row["PR(>F)"]))
        assert effect.p == pytest.approx(effect.p_f, abs=0.05)
    without = factorial(values + 5 * np.array(blocks), factors, permutations=999)
    assert without.effects[0].p > found.effects[0].p


def test_permutations_agree_with_f_for_normal_runs() -> None:
    values, factors = runs(2, 5, seed=4, lost=3)
    for effect in factorial(values, factors, permutations=9999).effects:
        assert effect.p == pytest.approx(effect.p_f, abs=0.03)


def test_a_pure_interaction_by_hand() -> None:
    """Means 0 1 / 1 0: no main effect, SS of the interaction = n / 4 of four cells' sign-weighted sum."""
    noise = [-0.1, 0.1]
    cells = [(0, 0, 0.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)]
    values = [mean + one for *_, mean in cells for one in noise]
    factors = {"a": [a for a, *_ in cells for _ in noise], "b": [b for _, b, _ in cells for _ in noise]}
    found = factorial(values, factors)
    a, b, both = found.effects
    assert (a.sum_of_squares, b.sum_of_squares) == (0, 0)
    assert (a.p, a.p_f) == (1, 1)
    assert both.name == "a x b"
    assert both.sum_of_squares == pytest.approx(2.0)
    assert both.f == pytest.approx(2.0 / (0.08 / 4))
    assert both.partial_eta_squared == pytest.approx(2 / 2.08)
    assert both.partial_omega_squared == pytest.approx((2 - 0.02) / (2 + 7 * 0.02))
    assert found.marginal_means == {
        "a": {0: pytest.approx(0.5), 1: pytest.approx(0.5)},
        "b": {0: pytest.approx(0.5), 1: pytest.approx(0.5)},
    }
    assert both.p_holm == pytest.approx(3 * both.p)
    assert [row["effect"] for row in found.rows()] == ["a", "b", "a x b"]


def test_marginal_means_count_cells_alike() -> None:
    found = factorial(
        [0.0, 0.2, 0.1, 0.1, 10.0, 4.0, 6.0], {"a": [0, 0, 0, 0, 0, 1, 1], "b": [0, 0, 0, 0, 1, 0, 1]}
    )
    assert found.marginal_means["a"] == {0: pytest.approx(5.05), 1: pytest.approx(5.0)}
    assert found.cell_sizes == {(0, 0): 4, (0, 1): 1, (1, 0): 1, (1, 1): 1}


def test_of_arms_seeds_are_blocks() -> None:
    random = np.random.default_rng(0)
    levels = {
        "a": {"rate": 1, "decay": 0},
        "b": {"rate": 2, "decay": 0},
        "c": {"rate": 1, "decay": 1},
        "d": {"rate": 2, "decay": 1},
    }
    luck = random.normal(0, 5, 6)
    values = {
        name: {seed: luck[seed] + random.normal(level["rate"], 0.2) for seed in range(6)}
        for name, level in levels.items()
    }
    found = factorial_of_arms(values, levels)
    assert found.residual_freedom == 24 - 4 - 5
    assert [effect.p_holm < 0.05 for effect in found.effects] == [True, False, False]
    values["a"][3] = math.nan
    assert factorial_of_arms(values, levels).residual_freedom == 23 - 4 - 5
    apart = {
        name: {seed + 10 * place: number for seed, number in by_seed.items()}
        for place, (name, by_seed) in enumerate(values.items())
    }
    assert factorial_of_arms(apart, levels).residual_freedom == 23 - 4


@pytest.mark.parametrize(
    ("values", "factors", "match"),
    [
        ([1.0, 2.0], {"a": [0, 1]}, "got 2 runs for 2 numbers"),
        ([1.0, 2.0, 3.0], {"a": [0, 0, 0]}, "got 1 level of a, expected two or more"),
        ([1.0, 2.0, 3.0], {"a": [0, 1]}, "got 2 levels of a for 3 runs"),
        (
            [1.0, 2.0, 3.0, 4.0],
            {"a": [0, 0, 1, 1], "b": [0, 0, 0, 1]},
            r"got no run with \('a', 'b'\) = \(0, 1\)",
        ),
        ([1.0, math.inf, 3.0], {"a": [0, 1, 1]}, "expected finite numbers"),
    ],
)
def test_what_is_no_factorial_is_refused(values: list[float], factors: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        factorial(values, factors)


def test_blocks_that_are_a_factor_are_refused() -> None:
    with pytest.raises(ValueError, match="say the same"):
        factorial([1.0, 2.0, 3.0, 4.0, 5.0], {"a": [0, 0, 1, 1, 1]}, blocks=[0, 0, 1, 1, 1])
