"""What live metrics cost: a step with all of them, logged at every step, beside one without; a row's work."""

import argparse
import time

import ml_dtypes
import numpy as np

from benchmarks.figures import Figure, ratios
from benchmarks.sizes import SIZES
from benchmarks.steps import in_turns
from flannel_pl.metrics.row_metrics import ROW_METRICS, measure_row

NUM_TOKENS, NUM_DEAD = 10_000, 3_700
"""About those of the built-in corpus."""

NUM_ROWS = 20


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns what a step takes with and without, the ratio, and what the writer's thread works at a row.

    Args:
        options: As of `steps.measure`.
    """
    without, with_live = "lightning-logging", "lightning-live"
    blocks_ms = in_turns((without, with_live), options)
    on_cpu = options.accelerator == "cpu"
    return [
        Figure("a step of flannel-pl, recording to disk and logging", "ms", blocks_ms[without]),
        Figure("the same with all live metrics, logged at every step", "ms", blocks_ms[with_live]),
        Figure(
            "live metrics: step with them / without",
            "",
            ratios(blocks_ms[with_live], blocks_ms[without]),
            limit=1.03 if on_cpu else None,
        ),
        Figure("live metrics: work of a row, beside the training", "ms", _row_ms(options)),
    ]


def _row_ms(options: argparse.Namespace) -> list[float]:
    """Returns the processor time of the thread for some rows."""
    draw = np.random.default_rng(0)
    shape = (2, NUM_TOKENS, SIZES[options.size].hidden_dim)
    rows_RVD = draw.normal(scale=0.02, size=shape).astype(ml_dtypes.bfloat16)
    dead, live = np.split(draw.permutation(NUM_TOKENS), [NUM_DEAD])
    sets = {"dead": np.sort(dead), "live": np.sort(live)}
    times_ms = []
    for row in range(NUM_ROWS):
        began_s = time.thread_time()
        measure_row(ROW_METRICS, sets, rows_RVD[row % 2], rows_RVD[1 - row % 2])
        times_ms.append(1000 * (time.thread_time() - began_s))
    return times_ms
