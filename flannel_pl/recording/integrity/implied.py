"""What a file says follows from something else in it: the experiment's tensors, and the recorded tokens."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.experiment_tensors import derived_tensors
from flannel_pl.recording.formats.files import TensorFile
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.integrity.parts import RunPart
from flannel_pl.recording.masks import differs, masks_of, other_counts
from flannel_pl.recording.sameness import has_own_data


def experiment_problems(file: TensorFile) -> Iterator[str]:
    """Yields what of a gathered file's own tensors does not follow from its metadata and its counts.

    Args:
        file: A gathered file or the extras of an index. Its header and the bytes of these tensors are as they
            were written.
    """
    try:
        record = _record(file.header.flannel)
    except ValueError as error:
        yield f"its metadata cannot be: {error}"
        return
    masks: dict[str, Array] = {}
    if record.has_tokens:
        counts, vocab_size = file.read("token_occurrence_counts"), _vocab_size(record)
        is_right_size = vocab_size is None or len(counts) == vocab_size
        if counts.dtype != np.int64 or counts.ndim != 1 or not is_right_size:
            yield f"token_occurrence_counts is {_shown(counts)}, expected I64 of shape ({vocab_size or 'V'},)"
            return
        masks = masks_of(counts)
    for name, expected in derived_tensors(record, masks).items():
        if differs(got := file.read(name), expected):
            yield f"{name} is {_shown(got)}, expected {_shown(expected)} by the rest of the file"
    if masks:
        yield from other_counts(masks["token_occurrence_counts"], record.data_digests.get("masks"))


def _vocab_size(record: ExperimentRecord) -> int | None:
    """Returns how many tokens the config says that there are; None if it does not, or has several numbers."""
    # Data that do not have the model's are of another class, or have another beside them.
    group = "data" if "vocab_size" in record.config["data"] else "model"
    if f"{group}.vocab_size" in record.swept_keys:
        return None
    size: int | None = record.config[group].get("vocab_size")
    return size


def token_problems(file: TensorFile, part: RunPart) -> Iterator[str]:
    """Yields what is wrong with the ids of the recorded tokens, if only some of the vocabulary were recorded.

    Args:
        file: Where they are.
        part: Which run.
    """
    key = part.key(RECORDED_TOKENS)
    if key not in file.header.tensors:
        return
    ids, vocab_size, wanted = file.read(key), part.said("model.vocab_size"), part.said("recorder.tokens")
    if len(ids) == 0 or ids[0] < 0 or (np.diff(ids) <= 0).any():
        yield f"{RECORDED_TOKENS} are not ascending token ids"
    elif isinstance(vocab_size, int) and ids[-1] >= vocab_size:
        yield f"{RECORDED_TOKENS} go up to {ids[-1]}, of a vocabulary of {vocab_size}"
    elif wanted in ("dead", "live") and not has_own_data(part.metadata.get("swept", {})):
        shared = f"{wanted}_indices"
        if shared in file.header.tensors and differs(ids, file.read(shared)):
            yield f"{RECORDED_TOKENS} are not the {wanted} tokens, which recorder.tokens asks for"


def _record(metadata: dict[str, Any]) -> ExperimentRecord:
    """Returns the record of the experiment that a gathered file was made of."""
    runs = [{name: run.get(name) for name in ("index", "seed", "swept")} for run in metadata["runs"]]
    said = {name: metadata.get(name) for name in ("name", "config", "provenance")}
    return ExperimentRecord.parse(json.dumps({**said, "runs": runs}).encode())


def _shown(array: Array) -> str:
    spec = TensorSpec.of(array)
    return f"{spec.dtype} of shape {spec.shape}" + (f", {array.item():.9g}" if array.ndim == 0 else "")
