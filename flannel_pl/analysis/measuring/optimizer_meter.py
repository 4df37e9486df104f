"""The metrics of gradient and optimizer: what they need of a recording, why it may lack that, their values.

They read up to three more tensors of a run's size beside the embeddings, so each is read only if something
is measured of it.

Shape suffixes: R rows, r rows of a stretch, V recorded tokens, S tokens of a set, D dimensions.
"""

from collections.abc import Mapping

import numpy as np

from flannel_pl.analysis.measuring.settings import is_exact, setting, trained_dtype
from flannel_pl.analysis.measuring.skipped import skipped_rows
from flannel_pl.arrays import Array
from flannel_pl.metrics.adam import AdamSettings, cos_grad_step, predicted_weights, reproduced
from flannel_pl.metrics.cloud import mean
from flannel_pl.metrics.lattice import widen
from flannel_pl.recording.reader import LazyTensor, Recording, RunRecording

COSINE = "cos_grad_step"
"""Median over the moving tokens of the cosine between gradient and step, see `adam.cos_grad_step`."""

EXACT, WITHIN_ONE = "adam_exact_fraction", "adam_within_one_fraction"
"""Which fraction of the weights AdamW's formula gives from the recorded moments, see `adam.reproduced`."""

OF_OPTIMIZER = (COSINE, EXACT, WITHIN_ONE)

DEFAULT_EPSILON = 1e-8
"""That of torch and of `TiedGPT2`; a file without a config does not say it."""


class OptimizerMeter:
    """Measures, row by row, what a run's gradient and optimizer did; several rows at the same time.

    Args:
        recording: Where the run is from; it may have the settings of the optimizer.
        run: One run of it, with embeddings.

    Attributes:
        names: Metrics that can be measured.
        left_out: Metric -> why it cannot.
        tensors: What they read besides the embeddings.
    """

    def __init__(self, recording: Recording, run: RunRecording) -> None:
        self._steps_R = np.asarray(run.steps)
        self._num_taken_R = self._steps_R - np.cumsum(skipped_rows(run))  # Adam counts those that it takes
        reasons = {COSINE: _lacking(run, self._steps_R, ("grads",))}
        self._settings: AdamSettings | None = None
        self._rates_R = np.empty(0)
        moments = _lacking(run, self._steps_R, ("momentum", "variance"))
        moments = moments or _lacking_rates(run) or _other_dtype(recording, run)
        if not moments:
            self._settings, moments = _settings(recording, run)
        if self._settings is not None:
            self._rates_R = _rates(recording, run, self._steps_R)
            self._trained = np.dtype(trained_dtype(recording, run))
        reasons |= dict.fromkeys((EXACT, WITHIN_ONE), moments)
        self.names = tuple(name for name, reason in reasons.items() if not reason)
        self.left_out = {name: reason for name, reason in reasons.items() if reason}
        read = [
            *(["grads"] if COSINE in self.names else []),
            *(["momentum", "variance"] if self._settings else []),
        ]
        self.tensors: dict[str, LazyTensor] = {name: run.tensor(name) for name in read}

    @property
    def row_bytes(self) -> int:
        """Bytes that are read for one row."""
        return sum(tensor.row_bytes for tensor in self.tensors.values())

    def read(self, rows: range) -> dict[str, Array]:
        """Returns name -> (r, V, D) of consecutive rows, as stored.

        Raises:
            RunError: If a file cannot be read.
        """
        return {name: tensor[rows.start : rows.stop] for name, tensor in self.tensors.items()}

    def measure(
        self,
        stored: Mapping[str, Array],
        *,
        row: int,
        before_VD: Array,
        after_VD: Array,
        dW_VD: Array,
        sets: Mapping[str, Array],
    ) -> dict[str, dict[str, float]]:
        """Measures one row; not row 0, which has none before it, nor one of a step that was skipped.

        Args:
            stored: Name -> (V, D) of this row, from `read`.
            row: Its number.
            before_VD: Embeddings of the row before, as stored.
            after_VD: Those of this row.
            dW_VD: Their difference, float64.
            sets: Token set -> positions, (S,) int64.

        Returns:
            Token set -> metric -> value; for every name in `names`.
        """
        per_token: dict[str, Array] = {}
        if "grads" in stored:
            per_token[COSINE] = cos_grad_step(widen(stored["grads"]), dW_VD)
        if self._settings is not None:
            as_trained = [
                one_VD.astype(self._trained, copy=False)
                for one_VD in (before_VD, stored["momentum"], stored["variance"], after_VD)
            ]
            predicted_VD = predicted_weights(
                *as_trained[:3],
                step=int(self._num_taken_R[row]),
                learning_rate=float(self._rates_R[row]),
                settings=self._settings,
            )
            per_token[EXACT], per_token[WITHIN_ONE] = reproduced(predicted_VD, as_trained[3])
        return {
            one: {
                name: _median(x_V[tokens]) if name == COSINE else mean(x_V[tokens])
                for name, x_V in per_token.items()
            }
            for one, tokens in sets.items()
        }


def _median(x_S: Array) -> float:
    """Returns the median of what is not NaN; NaN if there is nothing."""
    defined = x_S[~np.isnan(x_S)]
    return float(np.median(defined)) if defined.size else float("nan")


def _lacking(run: RunRecording, steps_R: Array, names: tuple[str, ...]) -> str:
    """Returns why tensors do not say what happened in every step of the embeddings; empty if they do."""
    absent = [name for name in names if name not in run.names]
    if absent:
        verb = "is" if absent in (["momentum"], ["variance"]) else "are"
        return f"{' and '.join(absent)} {verb} not recorded"
    shape = run.tensor("embeddings").shape
    for name in names:
        if run.tensor(name).shape != shape:
            return f"{name} has the shape {run.tensor(name).shape} and embeddings {shape}, expected the same"
    apart = np.diff(steps_R)
    if (apart != 1).any():
        return f"rows are {apart.max()} steps apart, and it takes the weights before and after each step"
    return ""


def _lacking_rates(run: RunRecording) -> str:
    return "" if "learning_rates" in run.names else "learning_rates are not recorded"


def _other_dtype(recording: Recording, run: RunRecording) -> str:
    """Returns which tensor is not recorded to the bit, as the optimizer had it; empty if none."""
    stored = {name: run.tensor(name).dtype for name in ("embeddings", "momentum", "variance")}
    param_dtype = trained_dtype(recording, run)
    for name, dtype in stored.items():
        if not is_exact(dtype, param_dtype):
            return f"the optimizer had {name} as {param_dtype}, and the file has {dtype}"
    return ""


def _settings(recording: Recording, run: RunRecording) -> tuple[AdamSettings | None, str]:
    """Returns the settings of the optimizer, or why they are not known."""
    keys = {"beta1": "adam_beta1", "beta2": "adam_beta2", "weight_decay": "weight_decay"}
    found = {name: setting(recording, run, f"model.{key}") for name, key in keys.items()}
    absent = [keys[name] for name, value in found.items() if value is None]
    if absent:
        return None, f"the file does not say which {', '.join(absent)} the optimizer had"
    epsilon = setting(recording, run, "model.adam_epsilon")
    found["epsilon"] = DEFAULT_EPSILON if epsilon is None else epsilon
    return AdamSettings(**{name: float(value) for name, value in found.items()}), ""


def _rates(recording: Recording, run: RunRecording, steps_R: Array) -> Array:
    """Returns the rate of each step in float64, (R,).

    A file has it in float32, which moves a step by up to one part in 10^7. Where one of `TiedGPT2`'s
    schedules gives a rate that is the recorded one in float32, it is taken instead.
    """
    recorded_R = np.asarray(run.tensor("learning_rates"))
    rates_R: Array = recorded_R.astype(np.float64)
    first = setting(recording, run, "model.learning_rate")
    last_step = setting(recording, run, "trainer.max_steps")
    if first is None or last_step is None:
        return rates_R
    factors_R = np.maximum(0.0, (last_step - (steps_R - 1)) / max(1, last_step))
    for scheduled_R in (first * factors_R, np.full(rates_R.shape, first)):
        same_R = scheduled_R.astype(np.float32) == recorded_R
        rates_R[same_R] = scheduled_R[same_R]
    return rates_R
