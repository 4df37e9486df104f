"""What is taken of every step, one file for each quantity; needs torch only."""

from flannel_pl.quantities.hidden_mean import HiddenMean
from flannel_pl.quantities.logits_at import LogitsAt
from flannel_pl.quantities.norms import GradientNorms, UpdateNorms
from flannel_pl.quantities.parameters import OptimizerState, ParameterGradients, ParameterValues
from flannel_pl.quantities.quantity import Column, Quantity, Row, Values
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject
from flannel_pl.quantities.token_probability import TokenProbability
from flannel_pl.quantities.top_tokens import TopTokens

__all__ = [
    "Column",
    "GradientNorms",
    "HiddenMean",
    "LogitsAt",
    "OptimizerState",
    "ParameterGradients",
    "ParameterValues",
    "Quantity",
    "Row",
    "Step",
    "Subject",
    "TokenProbability",
    "TopTokens",
    "UpdateNorms",
    "Values",
]
