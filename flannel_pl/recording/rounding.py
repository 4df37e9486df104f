"""What of a recording is not to the bit what training had, and what may not be, as far as it says."""

from collections.abc import Iterator

from flannel_pl.recording.arithmetic import AUTOCAST, Arithmetic, unified
from flannel_pl.recording.formats.schema import holds
from flannel_pl.recording.reader import Recording, RunRecording

_OF_WEIGHTS = ("embeddings", "grads", "momentum", "variance")
"""Tensors of the parameter that earlier versions recorded in bfloat16, whatever type they had."""


def rounding(recording: Recording, run: RunRecording) -> Iterator[str]:
    """Yields, in a line each, what a run has in a narrower type than training had, for sure or perhaps.

    Args:
        recording: What the run is of; open.
        run: The run.
    """
    own = _own_dtypes(recording, run)
    stored = {name: run.tensor(name).dtype for name in own if name in run.names}
    narrower = [f"{name} from {own[name]} to {to}" for name, to in stored.items() if not holds(to, own[name])]
    if narrower:
        yield f"rounded: {', '.join(narrower)}"
    has_loss = "losses" in run.names and run.tensor("losses").dtype == "float64"
    if own.get("logits") == "float64" and not has_loss:
        yield "rounded: losses_f32 from float64 to float32, if the loss was float64 as the weights were"
    yield from (f"of an earlier version: {words}" for words in _doubts(recording, run))


def _own_dtypes(recording: Recording, run: RunRecording) -> dict[str, str]:
    """Returns in which type training had each tensor; of a file of an earlier version by its config."""
    own: dict[str, str] | None = run.metadata.get("own_dtypes")
    if own is not None:
        return own
    config = run.metadata.get("config") or recording.metadata.get("config") or {}
    weights, precision = (
        run.swept.get(f"{group}.{key}", config.get(group, {}).get(key))
        for group, key in (("model", "param_dtype"), ("trainer", "precision"))
    )
    return {} if weights is None else Arithmetic(weights, AUTOCAST.get(unified(precision))).own_dtypes


def _doubts(recording: Recording, run: RunRecording) -> Iterator[str]:
    """Yields what a file of an earlier version may hold that this one records otherwise, and does not tell.

    Of a run that `fit` made the config tells: the type of its weights, and its parameters have one rate.
    """
    is_ours = "schema" in recording.metadata or "schema" in run.metadata
    has_config = bool(recording.metadata.get("config") or run.metadata.get("config"))
    names = [name for name in _OF_WEIGHTS if name in run.names]
    if not is_ours or has_config or not names or "own_dtypes" in run.metadata:
        return
    if narrow := [name for name in names if run.tensor(name).dtype == "bfloat16"]:
        yield f"{', '.join(narrow)} may be rounded"
    if "learning_rates" in run.names:
        yield "learning_rates may be those of the optimizer's first parameter group"
