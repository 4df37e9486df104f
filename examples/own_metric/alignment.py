"""A metric of one's own: how much tokens move as one body.

PYTHONPATH=examples/own_metric flannel-pl report runs/quickstart --metrics '[alignment.alignment]'
"""

import numpy as np

from flannel_pl.metrics import Drawn, Moment, RowMetric


def _measure(tokens: Moment) -> float:
    """Returns the mean cosine of each token's step (S, D) with the centroid's; NaN if none moves."""
    lengths_S = np.linalg.norm(tokens.dW_SD, axis=1)
    centroid_D = tokens.dW_SD.mean(axis=0)
    along_S = tokens.dW_SD @ centroid_D
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_S = along_S / (lengths_S * np.linalg.norm(centroid_D))
    return float(np.nanmean(cosines_S)) if np.isfinite(cosines_S).any() else float("nan")


alignment = RowMetric(
    _measure,
    "mean cosine of the tokens' steps with the centroid's",
    of_motion=True,
    drawn=Drawn(
        heading="Alignment",
        label="mean cosine",
        caption="At 1 all tokens step in the direction of their centre: they move as one body. At 0 they "
        "scatter. Thin lines are runs, the thick one their mean.",
        formula="mean_i cos(dw_i, dc)",
    ),
)
