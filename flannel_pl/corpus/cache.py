"""The cache: token ids of every text tokenized so far, so that nobody tokenizes twice.

A cache file is a .npy file with a checksum behind it. Training reads nothing of it that was not compared
with that.
"""

import hashlib
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import xxhash
from tokenizers import Tokenizer

from flannel_pl.corpus.files import clear_temporaries, published
from flannel_pl.corpus.masks import Tokens
from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import cache_home

LEFT_BEHIND_S = 86400.0
"""Age at which what was to become a cache file has been left by a process that was killed."""

_CHECKSUM_BYTES = 8
_FORMAT = b"npy, then xxh3-64"
"""Part of what a file is named after, so that files of another format, earlier ones, are not looked at."""


def cache_folder() -> Path:
    """Returns the cache folder (`paths.cache_home`), made if need be.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    folder = cache_home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            now_s = os.fstat(probe.fileno()).st_mtime  # by the clock of the disk
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {folder}: {error.strerror}."
            " Set $FLANNEL_PL_CACHE to a folder that can be written to"
        ) from error
    clear_temporaries(folder, before_s=now_s - LEFT_BEHIND_S)
    return folder


def say_damaged(path: Path) -> None:
    """Tells the user that something in the cache is not as it was written."""
    print(f"flannel-pl: {path} is damaged; it is made anew", file=sys.stderr, flush=True)


def tokens_path(*, corpus: bytes, tokenizer: bytes) -> Path:
    """Returns where the cache keeps the token ids of a model text, given the bytes of both files."""
    digests = (hashlib.sha256(data).digest() for data in (corpus, tokenizer))
    return cache_folder() / f"tokens-{hashlib.sha256(_FORMAT + b''.join(digests)).hexdigest()[:32]}.npy"


def cached_tokens(path: Path) -> Tokens | None:
    """Returns the token ids at `path`, memory-mapped; None when they are not there or are damaged.

    Every byte is compared with the checksum.
    """
    if not path.is_file():
        return None
    try:
        content = np.memmap(path, np.uint8, mode="r")
        if content[-_CHECKSUM_BYTES:].tobytes() != _checksum(path, content[:-_CHECKSUM_BYTES].data):
            return None
        tokens: Tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError):  # it cannot be read, or is empty
        return None
    return tokens


def save_tokens(tokens: Tokens, path: Path) -> None:
    """Publishes token ids in the cache.

    Raises:
        RunError: The disk refuses.
    """
    try:
        with published(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, tokens)
            checksum = _checksum(path, np.memmap(temporary, np.uint8, mode="r").data)
            with temporary.open("ab") as file:
                file.write(checksum)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. Free space, or set $FLANNEL_PL_CACHE to another folder"
        ) from error


def _checksum(path: Path, content: memoryview) -> bytes:
    """Returns the checksum of a cache file; its name counts too, so that files cannot be exchanged."""
    hasher = xxhash.xxh3_64(path.name.encode())
    hasher.update(content)
    return hasher.digest()


def tokenize(text: str, tokenizer: Tokenizer, *, source: Path) -> Tokens:
    """Returns the token ids of `text` as the notebook gets them, by one `encode` of the whole.

    Args:
        text: The model text.
        tokenizer: One without unknown token drops characters it does not know; this warns of them.
        source: The file the text is from, for messages.

    Returns:
        The ids, (number of tokens,), uint16 up to 65,536 vocabulary entries, else int32.

    Raises:
        UserError: Not one token comes out, or ids reach beyond the vocabulary.
    """
    vocab_size = tokenizer.get_vocab_size()
    # The same as `encode`, but lets other threads run meanwhile: that which looks at signals.
    (encoding,) = tokenizer.encode_batch([text])
    ids = np.array(encoding.ids, dtype=np.int64)
    if not ids.size:
        raise UserError(
            f"the tokenizer knows no character of {source}. Make one for this text: flannel-pl prepare"
        )
    if ids.max() >= vocab_size:
        raise UserError(
            f"the tokenizer gives id {ids.max():,} for {source} but has only {vocab_size:,} entries;"
            " expected ids without gaps. Make another with flannel-pl prepare"
        )
    _warn_of_dropped_characters(text, tokenizer, source=source)
    return ids.astype(_dtype(vocab_size))


def _warn_of_dropped_characters(text: str, tokenizer: Tokenizer, *, source: Path) -> None:
    """Warns once of all visible characters of `text` that get no token even on their own."""
    dropped = {
        character: count
        for character, count in Counter(text).items()
        if not character.isspace() and not tokenizer.encode(character).ids
    }
    if dropped:
        commonest = max(dropped, key=dropped.__getitem__)
        warnings.warn(
            f"the tokenizer does not know {sum(dropped.values()):,} characters of {source} and drops them"
            f" ({len(dropped):,} different ones, most often U+{ord(commonest):04X})",
            stacklevel=2,
        )


def _dtype(vocab_size: int) -> np.dtype[np.integer]:
    """Returns the dtype of token ids in the cache."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
