"""The settings that a run was trained with, as far as its recording says."""

import math
from typing import Any

import numpy as np

from flannel_pl.recording.formats.schema import CONFIG_SCALARS, holds
from flannel_pl.recording.reader import Recording, RunRecording

PARAM_DTYPES = ("bfloat16", "float32")
"""Types that `TiedGPT2` can have its weights in."""


def trained_dtype(recording: Recording, run: RunRecording) -> str:
    """Returns the type that a run had its weights in: then a step is one on that type's lattice.

    Without a word of it in the file it is that of the recorded embeddings, if weights can have it.
    """
    if (own := run.metadata.get("own_dtypes", {}).get("embeddings")) is not None:
        return str(own)
    recorded: str = run.tensor("embeddings").dtype
    guess = recorded if recorded in PARAM_DTYPES else " or ".join(PARAM_DTYPES)
    return str(setting(recording, run, "model.param_dtype") or guess)


def is_exact(recorded: str, trained: str) -> bool:
    """Tells whether a recorded tensor has every bit of what it was, in a type whose lattice we know.

    Example:
        >>> is_exact("float32", "bfloat16"), is_exact("bfloat16", "float32"), is_exact("float16", "float16")
        (True, False, False)
    """
    return trained in PARAM_DTYPES and holds(recorded, trained)


def setting(recording: Recording, run: RunRecording, key: str) -> Any:
    """Returns the value that a run had of a config key, e.g. model.adam_beta1; None if the file does not say.

    Without a config it is a scalar of the file, whose float32 is taken for the shortest number that it
    stands for: 0.9, not 0.8999999761581421.
    """
    if key in run.swept:
        return run.swept[key]
    config: Any = run.metadata.get("config", recording.metadata.get("config"))
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    if config is not None:
        return config
    for name, source in CONFIG_SCALARS.items():
        value = recording.scalars.get(name)
        if source == key and value is not None and math.isfinite(value) and value >= 0:
            return value if isinstance(value, int) else float(str(np.float32(value)))
    return None
