"""Whether all runs of an experiment can be gathered: by the header that this needs, before any is trained."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.belonging import said_of_run
from flannel_pl.recording.experiment_record import ExperimentRecord, GatherMode
from flannel_pl.recording.experiment_tensors import derived_tensors
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.safetensors import layout
from flannel_pl.recording.formats.safetensors.layout import FileLayout, is_readable, plan_layout
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.gathering.contents import gathered_metadata
from flannel_pl.recording.gathering.notes import Specs

WAYS_OUT = {
    "single": "--experiment.gather index copies nothing, --experiment.gather none leaves the runs' own files",
    "index": "--experiment.gather none leaves the runs' own files",
}


def check_header_fits(
    content: Mapping[str, Any],
    *,
    masks: Mapping[str, Array],
    specs: Sequence[Specs],
    metadata: Sequence[Mapping[str, Any]],
) -> None:
    """Refuses an experiment whose runs no file can hold, or no index.

    Args:
        content: Of its `experiment.json`, as it is going to be.
        masks: The five tensors of its masks file.
        specs: Of each run what its shard is going to hold, by name without prefix.
        metadata: Of each run what its shard is going to say of itself.

    Raises:
        UserError: Says how many runs there are, and what else there is to do.
    """
    mode: GatherMode = content["config"]["experiment"]["gather"]
    if mode == "none":
        return
    too_many = mode == "single" and sum(map(len, specs)) > layout.MAX_TENSORS  # no need to write that down
    try:
        if not too_many:
            record = ExperimentRecord.parse(json.dumps(content).encode())
            too_many = not is_readable(_planned(record, mode, masks, specs, metadata))
    except ValueError:  # not even a record of them could be read
        too_many = True
    if too_many:
        what = "one file" if mode == "single" else "an index"
        raise UserError(
            f"{len(specs)} runs are too many for {what}, whose header no reader would accept. Nothing is "
            f"trained. {WAYS_OUT[mode]}; or split the experiment by its seeds or its sweep"
        )


def _planned(
    record: ExperimentRecord,
    mode: GatherMode,
    masks: Mapping[str, Array],
    specs: Sequence[Specs],
    metadata: Sequence[Mapping[str, Any]],
) -> FileLayout:
    extras = derived_tensors(record, masks)
    sayings = [said_of_run(one, index) for index, one in enumerate(metadata)]
    keys = {name: TensorSpec.of(array) for name, array in extras.items()}
    if mode == "single":
        for index, tensors in enumerate(specs):
            keys |= {run_prefix(index) + name: spec for name, spec in tensors.items()}
    return plan_layout(keys, metadata=gathered_metadata(record, sayings, extras))
