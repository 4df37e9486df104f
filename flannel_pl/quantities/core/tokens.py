"""Which tokens to record: `recorder.tokens` -> token ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.small_files import read_small

TokenIds = np.ndarray[Any, np.dtype[np.int64]]


def recorded_token_ids(
    tokens: str, *, token_sets: Mapping[str, TokenIds], num_tokens: int
) -> TokenIds | None:
    """Resolves `recorder.tokens`.

    Args:
        tokens: `all`, the name of one of the `token_sets`, or the path of a text file with one token id per
            line.
        token_sets: Name -> token ids, 1-D int64.
        num_tokens: Size of the vocabulary.

    Returns:
        The ids, sorted and without repetitions, 1-D int64; None for all of them.

    Raises:
        UserError: If there is no such set or file, or it holds no ids or ids outside the vocabulary.
    """
    if tokens == "all":
        return None
    ids = token_sets[tokens] if tokens in token_sets else _read_ids(Path(tokens), known=["all", *token_sets])
    if len(ids) == 0:
        raise UserError(f"recorder.tokens is {tokens}, but there is no such token; record other tokens")
    if ids.min() < 0 or ids.max() >= num_tokens:
        raise UserError(
            f"recorder.tokens {tokens} has ids from {ids.min()} to {ids.max()}, expected 0 to "
            f"{num_tokens - 1}"
        )
    return np.unique(ids)


def as_token_sets(sets: Mapping[str, Any]) -> dict[str, TokenIds]:
    """Returns token sets as arrays of ids.

    Args:
        sets: Name -> ids: a list, an array or a tensor of integers.

    Raises:
        UserError: If one is something else, e.g. a mask.
    """
    if not isinstance(sets, Mapping):
        raise UserError(f"token_sets is {sets!r}, expected a dict from names to token ids")
    return {name: _ids(name, given) for name, given in sets.items()}


def token_tensors(sets: Mapping[str, TokenIds], device: torch.device) -> dict[str, Tensor]:
    """Returns token sets as tensors on a device."""
    return {name: torch.as_tensor(ids, device=device) for name, ids in sets.items()}


def _ids(name: str, given: Any) -> TokenIds:
    try:
        ids = torch.as_tensor(given, device="cpu").numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the token set {name!r} is {given!r}, expected token ids: {error}") from error
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        hint = "; of a mask, give np.flatnonzero(mask)" if ids.dtype.kind == "b" else ""
        raise UserError(
            f"the token set {name!r} has shape {ids.shape} and type {ids.dtype}, expected a list of token "
            f"ids, which are integers{hint}"
        )
    return ids.astype(np.int64)


def _read_ids(path: Path, *, known: list[str]) -> TokenIds:
    try:
        return np.array([int(word) for word in read_small(path).decode().split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise UserError(
            f"recorder.tokens is {str(path)!r}, expected {', '.join(known)} or a text file with one token id "
            f"per line: {error}"
        ) from error
