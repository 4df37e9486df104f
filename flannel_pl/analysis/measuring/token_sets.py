"""Which tokens an analysis is about: the dead ones, the live ones, all.

Shape suffixes: V recorded tokens, S tokens of a set.
"""

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.reader import Recording, RunRecording

SET_NAMES = ("dead", "live", "all")
"""Dead tokens never occur in the training text, live ones do."""


def token_sets(recording: Recording, run: RunRecording) -> tuple[dict[str, Array], dict[str, str]]:
    """Finds the token sets along the token axis of a run's tensors.

    Args:
        recording: Where the run is from; it has the masks.
        run: One run of it, perhaps of some tokens only (`recorder.tokens`).

    Returns:
        Set name -> positions, (S,) int64, ascending, without the sets that have no token; and set name -> why
        it is missing.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     sets, missing = token_sets(recording, recording.run(0))
        >>> len(sets["dead"]) + len(sets["live"]) == len(sets["all"]), missing
        (True, {})
    """
    num_tokens = run.tensor("embeddings").shape[1]
    sets = {"all": np.arange(num_tokens)}
    missing: dict[str, str] = {}
    try:
        masks = recording.masks
    except UserError as error:
        return sets, dict.fromkeys(("dead", "live"), str(error))
    ids_V = token_ids(run)
    for name in ("dead", "live"):
        mask_V = np.asarray(masks[f"{name}_mask"]).astype(bool)
        positions = np.flatnonzero(mask_V[ids_V])
        if len(positions):
            sets[name] = positions
        else:
            missing[name] = f"no {name} token is recorded"
    return {name: sets[name] for name in SET_NAMES if name in sets}, missing


def token_ids(run: RunRecording) -> Array:
    """Returns the vocabulary ids of the tokens that a run's embeddings are recorded of, (V,) int64."""
    if RECORDED_TOKENS in run.names:
        return np.asarray(run.tensor(RECORDED_TOKENS)).astype(np.int64)
    return np.arange(run.tensor("embeddings").shape[1])
