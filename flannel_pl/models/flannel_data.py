"""The batches: overlapping windows of one token sequence, in an order that only depends on seed and step.

The order is the one `transformers.Trainer` gives the notebook: for every epoch a permutation of all windows
from a CPU generator seeded with seed + epoch, cut into batches; the last batch of an epoch may be smaller.

Shape suffixes: N tokens in the corpus, B batch, T positions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import override

from flannel_pl.corpus.store import Corpus, load_corpus
from flannel_pl.errors import UserError


class WindowOrder:
    """Which windows make up batch number `n`, for any `n`.

    Args:
        num_windows: Windows there are to choose from.
        batch_size: B, windows in a batch.
        seed: Epoch `e` is permuted with seed + e.
        drop_last: Whether an epoch ends with its last whole batch.
    """

    def __init__(self, num_windows: int, *, batch_size: int, seed: int, drop_last: bool = False) -> None:
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = num_windows // batch_size if drop_last else -(-num_windows // batch_size)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def batch(self, number: int) -> Tensor:
        """Returns the window numbers of batch `number` (from 0, counted over all epochs): (B,) int64, CPU."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._permutation = torch.randperm(self.num_windows, generator=generator)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]


class WindowLoader:
    """What Lightning iterates over: one epoch of batches at a time, starting wherever training stands.

    It carries its position in `state_dict`, so Lightning's checkpoints hold it.
    """

    def __init__(self, order: WindowOrder) -> None:
        self.order = order
        self.next_batch = 0

    def __len__(self) -> int:
        return self.order.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            indices_B = self.order.batch(self.next_batch)
            self.next_batch += 1
            yield indices_B
            if self.next_batch % len(self) == 0:
                return

    def state_dict(self) -> dict[str, int]:
        """Returns the position in the order."""
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at the position of `state`."""
        self.next_batch = state["next_batch"]


class FlannelData(LightningDataModule):
    """Windows of a tokenized corpus; by default every token offset is the start of one.

    The whole corpus lies on the device; only B window numbers travel there each step, and a batch is one
    gather.

    Without paths it is the built-in corpus: English-like and Thai-script text made from a fixed seed, in
    which about 37 % of the 10,000 tokens never occur. The first use prepares and caches it.
    Files of your own come from `flannel-pl prepare`, or are the notebook's three.

    Args:
        corpus_path: UTF-8 text to train on; null = the built-in corpus.
        tokenizer_path: `tokenizers` JSON file with exactly `vocab_size` entries, less the phantom tokens;
            null = the built-in corpus'.
        mask_path: safetensors file of live and dead tokens; null = counted from the corpus.
        batch_size: B, windows per batch.
        target_offset: How far ahead of position j its target lies. 2 is the notebook: labels are shifted in
            the dataset and once more inside the model. 1 is ordinary next-token prediction.
        windows: `overlapping`, one from every token on, or `disjoint`, one from every T-th.
        drop_last: Whether the last batch of an epoch is left out where it would be smaller.
        phantom_tokens: Rows of the embedding that no text can reach: the last of `vocab_size`, behind the
            tokenizer's. They count as dead, and are a token set of their own, `phantom`.
        order_seed: Seed of the batch order; null takes torch's current seed (in an experiment: the run's).
        max_seq_len: T, positions per window; linked to `model.max_seq_len`.
        vocab_size: V, size the tokenizer must have; linked to `model.vocab_size`.

    Raises:
        UserError: From `prepare_data`, if a file is missing, malformed, or does not fit the others.
    """

    AS_THE_MODELS = ("vocab_size", "max_seq_len")
    """Arguments that a config takes from the model's of the same name, if that has them."""

    def __init__(
        self,
        corpus_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        mask_path: str | Path | None = None,
        batch_size: int = 32,
        target_offset: Literal[1, 2] = 2,
        windows: Literal["overlapping", "disjoint"] = "overlapping",
        drop_last: bool = False,
        phantom_tokens: int = 0,
        order_seed: int | None = None,
        max_seq_len: int = 128,
        vocab_size: int = 10_000,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}, expected at least 1")
        if not 0 <= phantom_tokens < vocab_size:
            raise UserError(
                f"data.phantom_tokens is {phantom_tokens}, expected 0 or more, and fewer than "
                f"model.vocab_size, {vocab_size}"
            )
        # As text, because checkpoints are loaded with weights_only=True, which knows no paths.
        corpus_path, tokenizer_path, mask_path = (
            None if path is None else str(path) for path in (corpus_path, tokenizer_path, mask_path)
        )
        self.save_hyperparameters()
        self.corpus: Corpus | None = None
        self._order_seed = 0
        self._tokens_N = torch.empty(0, dtype=torch.int64)
        self._offsets_T = torch.empty(0, dtype=torch.int64)

    @override
    def prepare_data(self) -> None:
        """Tokenizes the corpus, or finds it in the cache, and checks that all three files agree."""
        self.load()

    def load(self) -> Corpus:
        """Returns the corpus, loaded once; raises UserError if it cannot be trained on."""
        if self.corpus is None:
            hparams: Any = self.hparams
            phantoms = hparams.phantom_tokens
            try:
                corpus = load_corpus(
                    corpus_path=hparams.corpus_path,
                    tokenizer_path=hparams.tokenizer_path,
                    mask_path=hparams.mask_path,
                    vocab_size=hparams.vocab_size - phantoms,
                )
            except UserError as error:
                if not phantoms:
                    raise
                raise UserError(f"{error} (model.vocab_size counts {phantoms} phantom tokens)") from error
            corpus = corpus.with_phantoms(phantoms) if phantoms else corpus
            if corpus.num_tokens <= hparams.max_seq_len:
                raise UserError(
                    f"the corpus {corpus.corpus_path} has {corpus.num_tokens} tokens, but one window needs "
                    f"model.max_seq_len + 1 = {hparams.max_seq_len + 1}; give a longer text or a smaller "
                    "--model.max_seq_len"
                )
            self.corpus = corpus
        return self.corpus

    @property
    def order(self) -> WindowOrder:
        """Which windows make up which batch."""
        hparams: Any = self.hparams
        num_tokens, length = self.load().num_tokens, hparams.max_seq_len
        num_windows = num_tokens - length
        if hparams.windows == "disjoint":  # the last of which may need one token more for its labels
            num_windows = (num_tokens + 1 - hparams.target_offset) // length
        return WindowOrder(
            num_windows, batch_size=hparams.batch_size, seed=self._order_seed, drop_last=hparams.drop_last
        )

    @property
    def _stride(self) -> int:
        """Tokens from the start of a window to that of the next."""
        hparams: Any = self.hparams
        return int(hparams.max_seq_len) if hparams.windows == "disjoint" else 1

    @property
    def token_sets(self) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """Named sets of token ids, each 1-D int64: `live` and `dead`, and `phantom` if there are such."""
        masks = self.load().masks
        sets = {"live": masks.live_indices, "dead": masks.dead_indices}
        if phantoms := int(self.hparams["phantom_tokens"]):
            vocab_size = int(self.hparams["vocab_size"])
            sets["phantom"] = np.arange(vocab_size - phantoms, vocab_size)
        return sets

    @override
    def setup(self, stage: str) -> None:
        """Fixes the seed of the batch order, before building the model seeds torch for its weights."""
        hparams: Any = self.hparams
        seed = hparams.order_seed
        self._order_seed = torch.initial_seed() if seed is None else seed

    @override
    def train_dataloader(self) -> WindowLoader:
        """Returns the window numbers, batch by batch; `transfer_batch_to_device` makes tokens of them."""
        return WindowLoader(self.order)

    @override
    def transfer_batch_to_device(
        self, batch: Tensor, device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Gathers the tokens of one batch on the device.

        Args:
            batch: Window numbers, (B,) int64; window i is tokens i .. i + T, or i T .. i T + T if they are
                disjoint.
            device: Where the corpus lies and the batch is wanted.
            dataloader_idx: Not used.

        Returns:
            `input_ids` and `labels`, both (B, T) int64. The model shifts the labels once more by itself.
        """
        hparams: Any = self.hparams
        if len(self._tokens_N) == 0 or self._tokens_N.device != device:
            tokens_N = np.asarray(self.load().tokens, dtype=np.int64)
            self._tokens_N = torch.from_numpy(tokens_N).to(device)
            self._offsets_T = torch.arange(hparams.max_seq_len, device=device)
        starts_B = batch.to(device, non_blocking=True) * self._stride
        starts_BT = starts_B[:, None] + self._offsets_T
        input_ids_BT = self._tokens_N[starts_BT]
        if hparams.target_offset == 1:
            return {"input_ids": input_ids_BT, "labels": input_ids_BT}
        return {"input_ids": input_ids_BT, "labels": self._tokens_N[starts_BT + 1]}
