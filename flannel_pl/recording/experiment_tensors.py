"""The tensors of an experiment that belong to no run: scalars, seeds and masks."""

from collections.abc import Mapping

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.schema import (
    CONFIG_SCALARS,
    experiment_tensors_of,
)
from flannel_pl.recording.masks import mask_problems, read_masks

Extras = dict[str, Array]
"""The experiment-wide tensors of a gathered recording, by key."""


def experiment_tensors(paths: ExperimentPaths, record: ExperimentRecord) -> Extras:
    """Returns the notebook's ten scalars, the seeds and the masks, as far as the experiment has them.

    A scalar whose config key was swept is NaN (`n_steps`: -1), since no one number is true of all runs.

    Raises:
        RunError: If the masks are missing, damaged, or not those that the runs were trained with.
    """
    if not record.has_tokens:
        return derived_tensors(record, {})
    if not is_there(paths.masks):
        raise RunError(
            f"{paths.masks} is missing; copy the masks the experiment was trained with there, then gather."
        )
    masks = read_masks(paths.masks)
    if wrong := list(mask_problems(masks, record.data_digests.get("masks"))):
        raise RunError(
            f"{paths.masks} is damaged: {'; '.join(wrong)}. Bring it back from where the experiment's masks "
            "came from, then gather."
        )
    return derived_tensors(record, masks)


def derived_tensors(record: ExperimentRecord, masks: Mapping[str, Array]) -> Extras:
    """Returns what `experiment_tensors` does.

    Args:
        record: The experiment's record.
        masks: The five tensors of its masks file; none where it has no tokens.
    """
    seeds = [run.seed for run in record.runs]
    integers = {"n_runs": len(seeds), "base_seed": seeds[0]}
    if masks:
        integers |= {f"n_{name}": int(masks[f"{name}_mask"].sum()) for name in ("live", "dead")}
    there = experiment_tensors_of(record.config, record.data_digests)
    found = {name: record.common(key) for name, key in CONFIG_SCALARS.items() if name in there}
    numbers = {name: value if type(value) in (int, float) else None for name, value in found.items()}
    integers["n_steps"] = -1 if (steps := numbers.pop("n_steps")) is None else steps
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{
            name: np.array(x if type(x) in (int, float) else np.nan, np.float32)
            for name, x in numbers.items()
        },
        "seeds": np.array(seeds, np.int64),
        **masks,
    }
