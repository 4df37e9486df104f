"""Live and dead masks: what they say, and that a file which says otherwise is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from flannel_pl.corpus.masks import TokenMasks
from flannel_pl.errors import UserError

TOKENS = np.array([4, 1, 1, 6, 4, 1], dtype=np.uint16)
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "masks.safetensors"
    TokenMasks.from_tokens(TOKENS, 8).save(path)
    return path


def load(path: Path) -> TokenMasks:
    return TokenMasks.load(path, vocab_size=8, tokens=TOKENS)


def test_masks_of_tokens() -> None:
    masks = TokenMasks.from_tokens(TOKENS, 8)
    assert masks.token_occurrence_counts.tolist() == [0, 3, 0, 0, 2, 0, 1, 0]
    assert masks.live_indices.tolist() == [1, 4, 6]
    assert masks.dead_indices.tolist() == [0, 2, 3, 5, 7]
    assert masks.live_mask.tolist() == [False, True, False, False, True, False, True, False]
    assert np.array_equal(masks.dead_mask, ~masks.live_mask)


def test_the_file_has_the_notebooks_five_arrays(path: Path) -> None:
    stored = load_file(path)
    assert {name: (str(array.dtype), array.shape) for name, array in stored.items()} == {
        "live_mask": ("bool", (8,)),
        "dead_mask": ("bool", (8,)),
        "live_indices": ("int64", (3,)),
        "dead_indices": ("int64", (5,)),
        "token_occurrence_counts": ("int64", (8,)),
    }


def test_the_file_is_as_readable_as_any_other(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_load_returns_what_was_saved(path: Path) -> None:
    loaded, true = load(path), TokenMasks.from_tokens(TOKENS, 8)
    for name in load_file(path):
        assert np.array_equal(getattr(loaded, name), getattr(true, name))


def test_counts_are_computed_where_an_older_file_lacks_them(path: Path) -> None:
    stored = load_file(path)
    del stored["token_occurrence_counts"]
    save_file(stored, path)
    assert load(path).token_occurrence_counts.tolist() == [0, 3, 0, 0, 2, 0, 1, 0]


def test_a_missing_or_damaged_file_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"masks file not found: .*none.*Leave data\.mask_path out"):
        load(path.with_name("none"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"not a safetensors file: .*masks\.safetensors"):
        load(path)


def test_masks_of_another_size_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"masks are for 8 tokens but model\.vocab_size is 10,000: .*masks"):
        TokenMasks.load(path, vocab_size=10_000, tokens=TOKENS)


def _kill(arrays: Arrays, token: int) -> None:
    arrays["live_mask"][token], arrays["dead_mask"][token] = False, True
    arrays["live_indices"] = np.flatnonzero(arrays["live_mask"])
    arrays["dead_indices"] = np.flatnonzero(arrays["dead_mask"])


def _revive(arrays: Arrays, token: int) -> None:
    arrays["live_mask"][token], arrays["dead_mask"][token] = True, False
    arrays["live_indices"] = np.flatnonzero(arrays["live_mask"])
    arrays["dead_indices"] = np.flatnonzero(arrays["dead_mask"])


def _set(name: str, value: NDArray[np.generic]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: _kill(arrays, 4),
            r"calls 1 tokens dead that occur in the corpus, e\.g\. id 4 \(2 times",
        ),
        (
            lambda arrays: _revive(arrays, 3),
            r"calls 1 tokens live that never occur in the corpus, e\.g\. id 3 \(0",
        ),
        (_set("token_occurrence_counts", np.arange(8)), r"wrong counts for 7 tokens, e\.g\. id 1 \(3 times"),
        (
            _set("dead_mask", np.ones(8, bool)),
            r"live_mask and dead_mask say the same of 3 tokens, e\.g\. of id 1;",
        ),
        (_set("live_indices", np.array([1, 4])), r"live_indices are not the ids in live_mask, which has 3"),
        (_set("dead_indices", np.array([7, 5, 3, 2, 0])), r"dead_indices are not the ids in dead_mask"),
        (_set("dead_mask", np.zeros(7, bool)), r"differ in length; expected one length"),
        (_set("live_mask", np.zeros(8, np.uint8)), r"live_mask is uint8 with shape \(8,\); expected bool"),
        (_set("live_indices", np.array([1, 4, 6], np.int32)), r"live_indices is int32 .*; expected int64"),
        (lambda arrays: arrays.pop("dead_mask"), r"lacks dead_mask"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    path: Path, change: Callable[[Arrays], None], message: str
) -> None:
    arrays: Arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)
    with pytest.raises(UserError, match=rf"masks\.safetensors.*{message}.*Leave data\.mask_path out"):
        load(path)
