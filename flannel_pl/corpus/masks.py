"""Which tokens are live (occur in the model text) and which are dead, and how often each occurs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from flannel_pl.errors import UserError

Tokens = NDArray[np.integer]

_COMPUTE = "Leave data.mask_path out to have the masks computed"


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """The notebook's five arrays, which cannot contradict each other. V is the vocabulary size.

    Attributes:
        live_mask: (V,) bool, true for the tokens that occur.
        dead_mask: (V,) bool, true for the others.
        live_indices: (number of live tokens,) int64, their ids, ascending.
        dead_indices: (number of dead tokens,) int64, their ids, ascending.
        token_occurrence_counts: (V,) int64, how often each token occurs.

    Raises:
        UserError: An array has the wrong dtype or shape, or contradicts another.
    """

    live_mask: NDArray[np.bool_]
    dead_mask: NDArray[np.bool_]
    live_indices: NDArray[np.int64]
    dead_indices: NDArray[np.int64]
    token_occurrence_counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuses arrays that contradict each other."""
        self._check_kinds()
        both = self.live_mask == self.dead_mask
        if both.any():
            raise UserError(
                f"live_mask and dead_mask say the same of {int(both.sum()):,} tokens, e.g. of id"
                f" {int(both.argmax())}; expected each token in exactly one"
            )
        for kind, mask, indices in (
            ("live", self.live_mask, self.live_indices),
            ("dead", self.dead_mask, self.dead_indices),
        ):
            if not np.array_equal(indices, np.flatnonzero(mask)):
                raise UserError(
                    f"{kind}_indices are not the ids in {kind}_mask, which has {int(mask.sum()):,}"
                )

    def _check_kinds(self) -> None:
        """Refuses wrong dtypes and shapes."""
        for name, array in self._arrays().items():
            dtype = np.bool_ if name.endswith("_mask") else np.int64
            if array.dtype != dtype or array.ndim != 1:
                expected = f"{np.dtype(dtype)} with one dimension"
                raise UserError(f"{name} is {array.dtype} with shape {array.shape}; expected {expected}")
        sizes = {len(a) for a in (self.live_mask, self.dead_mask, self.token_occurrence_counts)}
        if len(sizes) > 1:
            raise UserError(
                "live_mask, dead_mask and token_occurrence_counts differ in length; expected one length"
            )

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        """Returns the five arrays by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_tokens(cls, tokens: Tokens, vocab_size: int) -> "TokenMasks":
        """Returns the masks of `tokens`, ids of 0 .. vocab_size - 1."""
        return cls._of_counts(np.bincount(tokens, minlength=vocab_size).astype(np.int64))

    def with_phantoms(self, number: int) -> "TokenMasks":
        """Returns the same with tokens behind the last that never occur."""
        return self._of_counts(np.pad(self.token_occurrence_counts, (0, number)))

    @classmethod
    def _of_counts(cls, counts: NDArray[np.int64]) -> "TokenMasks":
        live_mask = counts > 0
        return cls(live_mask, ~live_mask, np.flatnonzero(live_mask), np.flatnonzero(~live_mask), counts)

    @classmethod
    def load(cls, path: Path, *, vocab_size: int, tokens: Tokens) -> "TokenMasks":
        """Reads a masks file and checks it against the tokens it should describe.

        Args:
            path: A safetensors file with the five arrays; `token_occurrence_counts`, which older files lack,
                is computed where it is missing.
            vocab_size: Number of tokens there are.
            tokens: The tokenized model text.

        Raises:
            UserError: The file is missing, damaged, of another size, inconsistent, or of another text.
        """
        if not path.is_file():
            raise UserError(f"masks file not found: {path}. {_COMPUTE}")
        try:
            stored = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"not a safetensors file: {path} ({error}). {_COMPUTE}") from error
        stored.setdefault(
            "token_occurrence_counts", np.bincount(tokens, minlength=vocab_size).astype(np.int64)
        )
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in stored]
        if missing:
            raise UserError(f"the masks file {path} lacks {', '.join(missing)}. {_COMPUTE}")
        size = stored["live_mask"].size
        if size != vocab_size:
            raise UserError(
                f"the masks are for {size:,} tokens but model.vocab_size is {vocab_size:,}: {path}."
                f" {_COMPUTE}"
            )
        try:
            masks = cls(**{name: stored[name] for name in names})
            masks.check_against(tokens)
        except UserError as error:
            raise UserError(f"the masks file {path} does not fit: {error}. {_COMPUTE}") from error
        return masks

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file with the five arrays."""
        return bytes(save(self._arrays()))

    def save(self, path: Path) -> None:
        """Writes the five arrays to a safetensors file."""
        # not save_file, which makes files that only their owner can read
        path.write_bytes(self.to_bytes())

    def check_against(self, tokens: Tokens) -> None:
        """Refuses masks that do not describe `tokens`.

        Raises:
            UserError: A token called dead occurs, one called live does not, or a count differs.
        """
        true = TokenMasks.from_tokens(tokens, len(self.live_mask))
        counts = true.token_occurrence_counts
        for wrong, what in (
            (self.dead_mask & true.live_mask, "calls {} tokens dead that occur in the corpus"),
            (self.live_mask & true.dead_mask, "calls {} tokens live that never occur in the corpus"),
            (self.token_occurrence_counts != counts, "has wrong counts for {} tokens"),
        ):
            if wrong.any():
                example = int(wrong.argmax())
                times = f"e.g. id {example} ({int(counts[example])} times in the corpus)"
                raise UserError(f"it {what.format(int(wrong.sum()))}, {times}")
