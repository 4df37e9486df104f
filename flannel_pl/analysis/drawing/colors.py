"""What tells groups of runs apart in a figure: a colour each, and a name."""

import matplotlib
import numpy as np

from flannel_pl.analysis.statistics.groups import Group

COLORS = ("#1f7fc4", "#d55e00", "#0a9a72", "#b8609a", "#8a7a20", "#5b78c9", "#c0504d")
"""Of groups of runs, after Okabe and Ito: told apart by the colour-blind, 3:1 on white and on near-black."""


def color_of(group: Group) -> str:
    """Returns a group's colour; of more groups than there are colours, one of a scale from dark to light."""
    if group.num_groups <= len(COLORS):
        return COLORS[group.place]
    scale = matplotlib.colormaps["plasma"](np.linspace(0.3, 0.75, group.num_groups))
    return str(matplotlib.colors.to_hex(scale[group.place]))


def legend(name: str) -> str:
    """Returns a name as a legend shows it: no formula, and not hidden for an underscore at its beginning.

    Example:
        >>> legend("_under")
        ' _under'
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
