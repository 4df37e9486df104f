"""What watching every step costs with flannel-pl and with its peers, in turns, and what each leaves of it."""

import argparse
import statistics
import sys
from contextlib import ExitStack

from benchmarks.figures import Figure, ratios
from benchmarks.peer_tools import KINDS, TOOLS, Tool, is_missing, title
from benchmarks.steps import answer, said_in_turns, start

BARE = "plain"
NEVER = {
    "OLMo-core's callbacks": "OLMo-core's callbacks need its own trainer, and ai2-olmo-core 3.0.0 an older "
    "filelock than constraints.txt has",
}
"""What has no loop here, and why."""


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns of each tool: its step / the bare one, the bytes it leaves per step, what of it comes back.

    A block counts with its mean: some tools do not do the same at every step.

    Args:
        options: As of `steps.measure`.
    """
    there = [loop for loop, tool in TOOLS.items() if not is_missing(tool)]
    with ExitStack() as stack:
        processes = {loop: start(loop, options, stack, None, "--counts_work") for loop in (BARE, *there)}
        said = said_in_turns(processes, options)
        left = {loop: answer(processes[loop]) for loop in there}
    blocks_ms = {loop: [statistics.fmean(times[:-1]) for times in said[loop]] for loop in said}
    work_ms = {loop: [times[-1] for times in said[loop]] for loop in said}
    figures = [Figure("peers: the bare step, a plain torch loop", "ms", blocks_ms[BARE])]
    for loop, tool in TOOLS.items():
        if loop in there:
            costs, work = (ratios(of[loop], of[BARE]) for of in (blocks_ms, work_ms))
            figures += _figures(title(tool), costs, work, *left[loop])
        else:
            figures.append(Figure(f"peers: {tool.words}", "", [], why_not=missing(tool)))
    figures += [Figure(f"peers: {name}", "", [], why_not=why) for name, why in NEVER.items()]
    for why in dict.fromkeys(figure.why_not for figure in figures if not figure.values):
        print(f"not measured: {why}", file=sys.stderr)
    return figures


def missing(tool: type[Tool]) -> str:
    """Returns what to say of a tool whose package is not there."""
    return f"{tool.package} is not installed: pip install flannel-pl[peers]"


def _figures(
    name: str, costs: list[float], work: list[float], num_bytes: float, num_equal: float
) -> list[Figure]:
    return [
        Figure(f"peers: a step with {name} / the bare step", "", costs),
        Figure(f"peers: the same in processor time, {name}", "", work),
        Figure(f"peers: bytes of a step, {name}", "MB", [num_bytes / 1e6]),
        Figure(
            f"peers: embedding, gradient, moments read back to the bit, {name}",
            f"of {len(KINDS)}",
            [num_equal],
        ),
    ]
