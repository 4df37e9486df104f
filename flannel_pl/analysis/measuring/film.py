"""Which rows of a run a film shows, and for how long each.

Half of what happens does so within the first steps of a thousand. So time in the film is not that of
training: it goes as log(1 + step), and so does the axis on which the film shows where it is.

Shape suffixes: R rows, F frames.
"""

import numpy as np

from flannel_pl.arrays import Array

MAX_FRAMES = 120

FILM_MS, HOLD_MS = 8500, 1500
"""From the first row to the last, and how long the last one stays."""

TICK_MS, LEAST_MS = 10, 20
"""What a GIF counts time in, and the shortest that browsers keep to."""


def film_time(steps_R: Array) -> Array:
    """Returns when each step is shown: 0 the first, 1 the last, between them as log(1 + step).

    Args:
        steps_R: Ascending, two at least; they are counted from the first.

    Example:
        >>> film_time(np.array([0, 1, 3, 7])).round(3).tolist()
        [0.0, 0.333, 0.667, 1.0]
    """
    time_R: Array = np.log1p(steps_R - steps_R[0]) / np.log1p(steps_R[-1] - steps_R[0])
    return time_R


def film_rows(steps_R: Array) -> Array:
    """Returns the rows to show: those nearest, in the film's time, to `MAX_FRAMES` moments evenly spread.

    There are fewer steps than moments at the beginning, so all of the first steps are there, and longer.

    Example:
        >>> rows = film_rows(np.arange(1001))
        >>> len(rows), rows[:4].tolist(), rows[-3:].tolist()
        (87, [0, 1, 2, 3], [890, 944, 1000])
    """
    time_R = film_time(steps_R)
    halfway = (time_R[1:] + time_R[:-1]) / 2
    return np.unique(np.searchsorted(halfway, np.linspace(0, 1, MAX_FRAMES)))


def frame_ms(steps_F: Array) -> list[int]:
    """Returns for how many milliseconds each frame is shown, in ticks of a GIF.

    Example:
        >>> frame_ms(np.array([0, 1, 3, 7]))
        [2830, 2840, 2830, 1500]
    """
    ends = (film_time(steps_F) * FILM_MS / TICK_MS).round().astype(int) * TICK_MS
    return [max(LEAST_MS, int(shown)) for shown in np.diff(ends)] + [HOLD_MS]
