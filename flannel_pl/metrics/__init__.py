"""Numbers from one row of weights: pure functions of arrays."""

from flannel_pl.metrics.row_metrics import Drawn, Moment, RowMetric

__all__ = ["Drawn", "Moment", "RowMetric"]
