"""From the notebook's data files, or none, to the `Corpus` that training uses."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from flannel_pl.corpus.builtin import BUILTIN_VOCAB_SIZE
from flannel_pl.corpus.cache import cached_tokens, save_tokens, say_damaged, tokenize, tokens_path
from flannel_pl.corpus.datafiles import CORPUS_NAME, TOKENIZER_NAME, builtin_folder
from flannel_pl.corpus.files import decode, read_bytes
from flannel_pl.corpus.masks import TokenMasks, Tokens
from flannel_pl.corpus.progress import stages
from flannel_pl.corpus.tokenizer import load_tokenizer
from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import MASKS_NAME


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized model text and what training needs to know of it.

    Attributes:
        corpus_path: The model text.
        tokenizer_path: Its tokenizer.
        mask_path: Its masks file; None where the masks were computed instead.
        tokens_path: Its token ids, a .npy file with a checksum behind it, in the cache.
        vocab_size: Entries of the tokenizer, and phantoms.
        masks: Live and dead tokens, and how often each occurs.
        digests: SHA-256 in hex: of the files `corpus` and `tokenizer`, of the bytes of `tokens`, and of
            `masks`, for which the bytes of `token_occurrence_counts` stand (the other arrays follow from it);
            both little-endian.
    """

    corpus_path: Path
    tokenizer_path: Path
    mask_path: Path | None
    tokens_path: Path
    vocab_size: int
    masks: TokenMasks
    digests: dict[str, str]

    @property
    def tokens(self) -> Tokens:
        """The token ids, (num_tokens,), memory-mapped, read-only: uint16 up to 65,536 entries, else int32.

        They are checked whenever they are asked for: whoever trains asks long after the corpus was loaded.

        Raises:
            RunError: Meanwhile they were damaged or removed.
        """
        tokens = cached_tokens(self.tokens_path)
        if tokens is None:
            raise RunError(
                f"{self.tokens_path} was damaged or removed while it was in use. Start again: it is made anew"
            )
        return tokens

    @property
    def num_tokens(self) -> int:
        """How many tokens the text has."""
        return int(self.masks.token_occurrence_counts.sum())

    def with_phantoms(self, number: int) -> "Corpus":
        """Returns the same with tokens behind the tokenizer's that no text has: dead ones."""
        masks = self.masks.with_phantoms(number)
        digests = {**self.digests, "masks": _digest_of(masks)}
        return replace(self, vocab_size=self.vocab_size + number, masks=masks, digests=digests)


def load_corpus(
    *,
    vocab_size: int,
    corpus_path: str | Path | None = None,
    tokenizer_path: str | Path | None = None,
    mask_path: str | Path | None = None,
    progress: bool = True,
) -> Corpus:
    """Returns the corpus in the named files, or the built-in one when none is named.

    The built-in corpus is made on first use. A text is tokenized once: its tokens stay in the cache under
    a hash of text and tokenizer, and every process maps that one file.

    Args:
        vocab_size: Entries the tokenizer must have.
        corpus_path: The model text, UTF-8.
        tokenizer_path: Its tokenizer, JSON as written by `tokenizers`.
        mask_path: Its masks, safetensors; None computes them.
        progress: Whether to show on stderr what takes long.

    Raises:
        UserError: A file is missing, damaged, empty or does not fit the others; or no cache can be written.
        RunError: The disk of the cache fails.
    """
    if corpus_path is None and tokenizer_path is None and mask_path is None:
        folder = _builtin_folder(vocab_size=vocab_size, progress=progress)
        corpus_path, tokenizer_path, mask_path = (
            folder / name for name in (CORPUS_NAME, TOKENIZER_NAME, MASKS_NAME)
        )
    if corpus_path is None or tokenizer_path is None:
        missing = "corpus_path" if corpus_path is None else "tokenizer_path"
        raise UserError(
            f"data.{missing} is missing. Name both data.corpus_path and data.tokenizer_path"
            " (flannel-pl prepare makes them), or no data file at all for the built-in corpus"
        )
    return _open(
        Path(corpus_path),
        Path(tokenizer_path),
        None if mask_path is None else Path(mask_path),
        vocab_size=vocab_size,
        progress=progress,
    )


def _builtin_folder(*, vocab_size: int, progress: bool) -> Path:
    """Returns the folder of the built-in corpus, or refuses a vocabulary size that it does not have."""
    if vocab_size != BUILTIN_VOCAB_SIZE:
        raise UserError(
            f"the built-in corpus has {BUILTIN_VOCAB_SIZE:,} vocabulary entries but model.vocab_size is"
            f" {vocab_size:,}. Run flannel-pl prepare --vocab_size {vocab_size} --out DIR and name its files"
        )
    return builtin_folder(progress=progress)


def _open(
    corpus_path: Path, tokenizer_path: Path, mask_path: Path | None, *, vocab_size: int, progress: bool
) -> Corpus:
    """Reads the files, tokenizing the text unless the cache has its tokens."""
    corpus_bytes = read_bytes(corpus_path, role="corpus")
    tokenizer = load_tokenizer(tokenizer_path, vocab_size=vocab_size)
    tokenizer_bytes = read_bytes(tokenizer_path, role="tokenizer")
    path = tokens_path(corpus=corpus_bytes, tokenizer=tokenizer_bytes)
    tokens = cached_tokens(path)
    if tokens is None:
        if path.exists():
            say_damaged(path)
        text = decode(corpus_bytes, path=corpus_path)
        with stages(f"tokenizing {corpus_path} (once)", total=1, show=progress) as do:
            tokens = do("encoding", lambda: tokenize(text, tokenizer, source=corpus_path))
            save_tokens(tokens, path)
    if mask_path is None:
        masks = TokenMasks.from_tokens(tokens, vocab_size)
    else:
        masks = TokenMasks.load(mask_path, vocab_size=vocab_size, tokens=tokens)
    hashed: dict[str, bytes | memoryview] = {
        "corpus": corpus_bytes,
        "tokenizer": tokenizer_bytes,
        "tokens": tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).data,
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in hashed.items()}
    digests["masks"] = _digest_of(masks)
    return Corpus(corpus_path, tokenizer_path, mask_path, path, vocab_size, masks, digests)


def _digest_of(masks: TokenMasks) -> str:
    return hashlib.sha256(masks.token_occurrence_counts.astype("<i8").tobytes()).hexdigest()
