"""Phases by the last crossing, against a loop over every token."""

from typing import Any

import numpy as np
import pytest

from flannel_pl.analysis.measuring.lifecycle import (
    NEVER,
    PHASES,
    Lifecycle,
    freeze_quantiles,
    phase_fractions,
)

Array = np.ndarray[Any, Any]
NUM_ROWS, NUM_TOKENS, DIM = 40, 30, 4


@pytest.fixture
def moved() -> Array:
    """Displacements of tokens that slow down, pause and go on: (rows, tokens, dimensions)."""
    draw = np.random.default_rng(2)
    fading = np.exp(-np.arange(NUM_ROWS) / 6)[:, None, None]
    moved_RSD: Array = np.rint(draw.normal(0, 9, (NUM_ROWS, NUM_TOKENS, DIM)) * fading)
    moved_RSD[:, 0] = 0  # never moves
    moved_RSD[-1, 1] = 1  # moves at the very end
    moved_RSD[:, 2] = 0
    moved_RSD[20, 2] = 50  # leaps out of a long rest
    return moved_RSD


def follow(moved_RSD: Array, first_step: int) -> Lifecycle:
    life = Lifecycle(NUM_TOKENS, DIM)
    for step, moved_SD in enumerate(moved_RSD, start=first_step):
        size = np.abs(moved_SD)
        norms = size.sum(1), np.sqrt((size**2).sum(1)), size.max(1)
        life.update(step, size.any(axis=1), *norms)
    return life


@pytest.mark.parametrize("cut", [0, 1, 13, NUM_ROWS])
def test_last_crossings_however_the_rows_are_cut(moved: Array, cut: int) -> None:
    life = follow(moved[:cut], 1)
    life.merge(follow(moved[cut:], 1 + cut))
    got = life.result(NUM_ROWS)
    for token in range(NUM_TOKENS):
        sizes = np.abs(moved[:, token])

        def last(crossed: Array) -> int:
            return max((row + 1 for row in range(NUM_ROWS) if crossed[row]), default=0)

        early = last(np.sqrt((sizes**2).sum(1)) > 2)
        midlife = max(early, last(sizes.max(1) > 1))
        late = last(sizes.sum(1) > 0)
        names = ("early_end", "midlife_end", "late_end")
        assert [got[name][token] for name in names] == [early, midlife, late]
        assert got["freeze_step"][token] == (NEVER if late == NUM_ROWS else late)
    assert got["freeze_step"][[0, 1, 2]].tolist() == [0, NEVER, 21]


def test_fractions_add_up_and_follow_the_ends(moved: Array) -> None:
    tokens = follow(moved, 1).result(NUM_ROWS)
    steps_R = np.arange(NUM_ROWS + 1)
    fractions = phase_fractions(tokens, steps_R)
    assert tuple(fractions) == PHASES
    np.testing.assert_allclose(sum(fractions.values()), 1)
    for step in steps_R:
        early = np.mean([step <= end and end > 0 for end in tokens["early_end"]])
        assert fractions["early"][step] == pytest.approx(early)
        over = np.mean([step > end or end == 0 for end in tokens["late_end"]])
        assert fractions["fimbulwinter"][step] == pytest.approx(over)
    assert all((fraction >= -1e-12).all() for fraction in fractions.values())


def test_a_single_row_is_frozen_at_its_start() -> None:
    tokens = Lifecycle(3, DIM).result(0)
    assert tokens["freeze_step"].tolist() == [0, 0, 0]
    assert phase_fractions(tokens, np.array([0]))["fimbulwinter"].tolist() == [1.0]


def test_no_tokens_have_no_phases() -> None:
    fractions = phase_fractions(Lifecycle(0, DIM).result(3), np.arange(4))
    assert all(np.isnan(fraction_R).all() for fraction_R in fractions.values())


def test_rows_need_not_be_one_step_apart() -> None:
    life, still = Lifecycle(1, DIM), np.array([0.0])
    for step, moves in ((50, True), (100, True), (150, False)):
        norm_S = np.array([1.0]) if moves else still
        life.update(step, np.array([moves]), norm_S, norm_S, norm_S)
    tokens = life.result(150)
    assert (tokens["freeze_step"][0], tokens["late_end"][0]) == (100, 100)
    assert phase_fractions(tokens, np.array([0, 50, 100, 150]))["late"].tolist() == [1, 1, 1, 0]


def test_zero_that_changes_its_sign_is_not_frozen_yet_does_not_move() -> None:
    life, still = Lifecycle(1, DIM), np.array([0.0])
    life.update(1, np.array([True]), still, still, still)
    tokens = life.result(2)
    assert (tokens["freeze_step"][0], tokens["late_end"][0]) == (1, 0)


def test_quantiles_are_of_all_tokens_and_those_that_move_come_last() -> None:
    got = freeze_quantiles(np.array([100, 200, 300, 400, 500, NEVER, NEVER, NEVER]))
    assert (got["min"], got["q25"], got["median"]) == (100, 200, 400)
    assert got["q75"] == got["max"] == np.inf
    assert got["still_moving"] == 3 / 8
    assert freeze_quantiles(np.array([NEVER]))["median"] == np.inf
    assert np.isnan(freeze_quantiles(np.array([], int))["still_moving"])
