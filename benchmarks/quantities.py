"""What recorded quantities cost: a step with one of them beside one with the notebook's six alone."""

import argparse

import torch
from typing_extensions import override

from benchmarks.figures import Figure, ratios
from benchmarks.steps import in_turns
from flannel_pl.quantities import (
    Column,
    GradientNorms,
    HiddenMean,
    Quantity,
    Row,
    Step,
    Subject,
    TokenProbability,
    UpdateNorms,
)

NUM_NUMBERS = 30


class Numbers(Quantity):
    """Thirty numbers that need next to no arithmetic: what is left is what each costs to record."""

    @override
    def columns(self, subject: Subject) -> list[Column]:
        return [Column(f"number{index}", dtype=torch.float32) for index in range(NUM_NUMBERS)]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        first_D = step.subject.parameter.detach()[0].float()
        for index in range(NUM_NUMBERS):
            row[f"number{index}"] = first_D[index % len(first_D)]


QUANTITIES = {
    "lightning-numbers": ("30 numbers", lambda: [Numbers()], 1.02),
    "lightning-hidden": ("the mean hidden state", lambda: [HiddenMean()], 1.01),
    "lightning-norms": ("norms of all parameters", lambda: [GradientNorms(), UpdateNorms()], None),
    "lightning-probability": (
        "the probability of every token",
        lambda: [TokenProbability(of=None)],
        1.15,
    ),
}
"""Loop -> what it records besides, in words; how that is made; the most that a step may take, as a ratio."""


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns the ratio of a step with each quantity to one without.

    Args:
        options: As of `steps.measure`.
    """
    without = "lightning-recording"
    blocks_ms = in_turns((without, *QUANTITIES), options)
    on_cpu = options.accelerator == "cpu"
    return [
        Figure(
            f"{words}: step with it / without",
            "",
            ratios(blocks_ms[loop], blocks_ms[without]),
            limit=limit if on_cpu else None,
        )
        for loop, (words, _, limit) in QUANTITIES.items()
    ]
