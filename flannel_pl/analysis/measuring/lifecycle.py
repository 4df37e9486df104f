"""The life of a token, by the last time it did something.

Early until its last step longer than sqrt(D) ULP; midlife until the last that moved some dimension by more
than one ULP; late until the last that moved it at all; then Fimbulwinter. Last times, not first: a token may
pause and go on. All of it is about what was recorded: what came later nobody knows.

Source: upstream 3.6 (lifecycle-phases.md, Nutcracker 03).

Shape suffixes: R rows, S tokens.
"""

from collections.abc import Mapping

import numpy as np

from flannel_pl.arrays import Array

PHASES = ("early", "midlife", "late", "fimbulwinter")
NEVER = -1
"""Instead of a freeze step: it moved in the last row, so nobody knows."""


class Lifecycle:
    """Follows tokens row by row; stretches of rows that were followed apart are joined by `merge`.

    Args:
        num_tokens: S.
        dim: D, dimensions of a token.

    Example:
        >>> life = Lifecycle(2, 64)
        >>> one, zero = np.array([9.0, 0.0]), np.array([0.0, 0.0])
        >>> life.update(1, np.array([True, False]), one, one, one)
        >>> life.update(2, np.array([False, False]), zero, zero, zero)
        >>> life.result(2)["freeze_step"].tolist()
        [1, 0]
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        self.reach = np.sqrt(dim)
        self.last_S = {
            name: np.zeros(num_tokens, np.int64) for name in ("changed", "early", "midlife", "late")
        }

    def update(self, step: int, changed_S: Array, l1_S: Array, l2_S: Array, linf_S: Array) -> None:
        """Takes note of one row.

        Args:
            step: The row's step.
            changed_S: Whether a bit of the token changed, bool.
            l1_S: L1 norm of its displacement, in ULP.
            l2_S: L2 norm.
            linf_S: Linf norm.
        """
        did = {"changed": changed_S, "early": l2_S > self.reach, "midlife": linf_S > 1, "late": l1_S > 0}
        for name, did_S in did.items():
            self.last_S[name][did_S] = step

    def merge(self, later: "Lifecycle") -> None:
        """Appends rows that were followed by another object."""
        for name, last_S in self.last_S.items():
            np.maximum(last_S, later.last_S[name], out=last_S)

    def result(self, last_step: int) -> dict[str, Array]:
        """Returns the steps at which the phases of each token ended.

        Args:
            last_step: Step of the last row whose step the optimizer took.

        Returns:
            early_end, midlife_end, late_end: the last step of that phase, 0 if it was over from the start; a
            phase never ends before the one before it. freeze_step: the step of the last change of any bit,
            after which the token does not move again before the recording ends; NEVER (-1) if that is the
            last row. All (S,) int64.
        """
        last = self.last_S
        early_S = last["early"]
        midlife_S = np.maximum(early_S, last["midlife"])
        return {
            "freeze_step": np.where((last["changed"] == last_step) & (last_step > 0), NEVER, last["changed"]),
            "early_end": early_S.copy(),
            "midlife_end": midlife_S,
            "late_end": np.maximum(midlife_S, last["late"]),
        }


def phase_fractions(tokens: Mapping[str, Array], steps_R: Array) -> dict[str, Array]:
    """Returns which fraction of the tokens is in which phase at each row.

    Args:
        tokens: From `Lifecycle.result`.
        steps_R: Step of each row; of one that was skipped, the last step before it that was taken.

    Returns:
        early, midlife, late, fimbulwinter -> (R,) float64; they add up to 1. NaN without tokens.

    Example:
        >>> ends = {"early_end": np.array([1]), "midlife_end": np.array([2]), "late_end": np.array([2])}
        >>> phase_fractions(ends, np.arange(5))["fimbulwinter"].tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0]
    """
    still_R = [_fraction_not_over(tokens[f"{name}_end"], steps_R) for name in PHASES[:3]]
    early_R, midlife_R, late_R = still_R
    return {
        "early": early_R,
        "midlife": midlife_R - early_R,
        "late": late_R - midlife_R,
        "fimbulwinter": 1 - late_R,
    }


def _fraction_not_over(end_S: Array, steps_R: Array) -> Array:
    """Returns which fraction of phases is not over at each step; one that ended at 0 never was."""
    if not len(end_S):
        return np.full(len(steps_R), np.nan)
    over_R = np.searchsorted(np.sort(end_S[end_S > 0]), steps_R, side="left") + np.count_nonzero(end_S == 0)
    fraction_R: Array = 1 - over_R / len(end_S)
    return fraction_R


def freeze_quantiles(freeze_step_S: Array) -> dict[str, float]:
    """Returns when tokens moved last: min, q25, median, q75, max, and the fraction that moves to the end.

    Args:
        freeze_step_S: From `Lifecycle.result`.

    Returns:
        Quantiles over all tokens: infinity where that many have not frozen, NaN without tokens; of an even
        number the lower median. still_moving is 0 to 1.

    Example:
        >>> freeze_quantiles(np.array([10, 20, 30, -1]))
        {'min': 10.0, 'q25': 10.0, 'median': 20.0, 'q75': 30.0, 'max': inf, 'still_moving': 0.25}
    """
    # Those that still move freeze later than all others; in between two steps there is nothing to say.
    step_S = np.where(freeze_step_S == NEVER, np.inf, freeze_step_S)
    names = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
    values = {
        name: float(np.quantile(step_S, q, method="inverted_cdf")) if len(step_S) else float("nan")
        for name, q in names.items()
    }
    moving = float(np.mean(freeze_step_S == NEVER)) if len(freeze_step_S) else float("nan")
    return {**values, "still_moving": moving}
