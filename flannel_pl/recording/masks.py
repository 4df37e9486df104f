"""The live/dead masks of an experiment: all follow from how often each token occurs."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.formats.schema import MASK_NAMES
from flannel_pl.recording.formats.specs import TensorSpec


def read_masks(path: Path) -> dict[str, Array]:
    """Returns the five tensors of a masks file.

    Raises:
        RunError: If it cannot be read, is damaged, or lacks one of them.
    """
    with open_file(path) as file:
        absent = [name for name in MASK_NAMES if name not in file.header.tensors]
        if absent:
            raise RunError(f"{path} has no {', '.join(absent)}; expected {', '.join(MASK_NAMES)}")
        return {name: file.read(name) for name in MASK_NAMES}


def mask_problems(masks: Mapping[str, Array], digest: str | None) -> Iterator[str]:
    """Yields what is wrong with the five tensors of an experiment's masks file.

    Args:
        masks: The tensors.
        digest: The recorded hash of the occurrences, if there is one.
    """
    counts = masks["token_occurrence_counts"]
    derived = masks_of(counts)
    if wrong := [name for name in derived if differs(masks[name], derived[name])]:
        yield f"{', '.join(wrong)} do not follow from token_occurrence_counts"
    if counts.dtype != np.int64 or counts.ndim != 1:
        yield f"token_occurrence_counts is {counts.dtype} of shape {counts.shape}, expected int64, 1-D"
    yield from other_counts(counts, digest)


def masks_of(counts: Array) -> dict[str, Array]:
    """Returns the five tensors of a masks file; all follow from the occurrences of each token, int64 (V,)."""
    live = counts > 0
    indices = [np.flatnonzero(mask).astype(np.int64) for mask in (live, ~live)]
    return dict(zip(MASK_NAMES, (live, ~live, *indices, counts), strict=True))


def other_counts(counts: Array, digest: str | None) -> Iterator[str]:
    """Yields a sentence if the occurrences of tokens are not those that a hash was taken of."""
    if digest is not None and hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest() != digest:
        yield "token_occurrence_counts are not those the experiment was trained with"


def differs(got: Array, expected: Array) -> bool:
    """Tells whether two arrays differ in dtype, shape or any bit."""
    return TensorSpec.of(got) != TensorSpec.of(expected) or got.tobytes() != expected.tobytes()
