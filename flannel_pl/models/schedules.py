"""Learning rates as a factor of the largest one: linear, constant or cosine, after a linear warm-up."""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["linear", "constant", "cosine"]


def rate_factor(schedule: Schedule, *, max_steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Returns the factor of the learning rate as a function of the number of steps taken.

    As `transformers.get_scheduler` gives it for `linear`, `constant_with_warmup` and `cosine`.

    Args:
        schedule: What follows the warm-up: `linear` goes to 0 at `max_steps`, `cosine` along half a wave.
        max_steps: The steps that are going to be taken.
        warmup_steps: The steps in which the factor goes from 0 to 1.

    Example:
        >>> [rate_factor("linear", max_steps=4)(step) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    rest = max(1, max_steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        if schedule == "linear":
            return max(0.0, (max_steps - step) / rest)
        if schedule == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup_steps) / rest))))
        return 1.0

    return factor
