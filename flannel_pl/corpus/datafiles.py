"""The notebook's three data files: making them, and the folder in the cache that holds the built-in ones."""

import hashlib
import shutil
from pathlib import Path

from flannel_pl.corpus.builtin import BUILTIN_SHA256, BUILTIN_VOCAB_SIZE, builtin_texts
from flannel_pl.corpus.cache import cache_folder, save_tokens, say_damaged, tokenize, tokens_path
from flannel_pl.corpus.files import temporary_beside
from flannel_pl.corpus.masks import TokenMasks
from flannel_pl.corpus.progress import DoStage, stages
from flannel_pl.corpus.tokenizer import train_tokenizer, warn_of_long_words
from flannel_pl.paths import MASKS_NAME

CORPUS_NAME = "flannel_model_corpus.txt"
TOKENIZER_NAME = "flannel_tokenizer_chars.json"
FILE_NAMES = (CORPUS_NAME, TOKENIZER_NAME, MASKS_NAME)

_CHECKSUMS_NAME = "SHA256SUMS"


def write_data_files(
    folder: Path,
    *,
    tokenizer_text: str,
    model_text: str,
    vocab_size: int,
    min_frequency: int = 2,
    source: Path,
    do: DoStage,
) -> TokenMasks:
    """Trains the tokenizer, tokenizes the model text and writes the three files.

    The tokens go into the cache, so that whoever loads the files need not tokenize again.

    Args:
        folder: Existing folder to write into.
        tokenizer_text: What the tokenizer learns from.
        model_text: What the model learns from.
        vocab_size: Entries of the tokenizer.
        min_frequency: How often a pair must occur to be merged.
        source: The file the model text is from, for messages.
        do: Goes through a stage; there are two.

    Returns:
        The masks written.

    Raises:
        UserError: The texts do not give such a tokenizer, or the tokenizer knows nothing of the model text.
    """
    warn_of_long_words(tokenizer_text)
    tokenizer = do(
        "training the tokenizer",
        lambda: train_tokenizer([tokenizer_text], vocab_size=vocab_size, min_frequency=min_frequency),
    )
    tokens = do("tokenizing", lambda: tokenize(model_text, tokenizer, source=source))
    masks = TokenMasks.from_tokens(tokens, vocab_size)
    corpus_path, tokenizer_path = folder / CORPUS_NAME, folder / TOKENIZER_NAME
    corpus_path.write_bytes(model_text.encode())
    tokenizer.save(str(tokenizer_path))
    masks.save(folder / MASKS_NAME)
    save_tokens(tokens, tokens_path(corpus=corpus_path.read_bytes(), tokenizer=tokenizer_path.read_bytes()))
    return masks


def builtin_folder(*, progress: bool = True) -> Path:
    """Returns the folder in the cache with the built-in corpus' three files, made on first use.

    Processes that come at the same time may each make it; the first to finish provides it for all. A damaged
    folder is made anew.
    """
    key = hashlib.sha256("".join(BUILTIN_SHA256.values()).encode()).hexdigest()[:16]
    folder = cache_folder() / f"builtin-{key}"
    if _is_sound(folder):
        return folder
    if folder.exists():
        say_damaged(folder)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        with stages("preparing the built-in corpus (once)", total=3, show=progress) as do:
            tokenizer_text, model_text = do("writing text", builtin_texts)
            write_data_files(
                temporary,
                tokenizer_text=tokenizer_text,
                model_text=model_text,
                vocab_size=BUILTIN_VOCAB_SIZE,
                source=folder / CORPUS_NAME,
                do=do,
            )
        (temporary / _CHECKSUMS_NAME).write_text(_checksums(temporary))
        _publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _publish_folder(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`, unless another process was faster; replaces a damaged one."""
    try:
        temporary.rename(folder)
    except OSError:
        if _is_sound(folder):
            return
        damaged = folder.rename(temporary_beside(folder))
        shutil.rmtree(damaged)
        temporary.rename(folder)


def _checksums(folder: Path) -> str:
    """Returns the checksums of the three files in `folder`, as `sha256sum` prints them."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILE_NAMES}
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _is_sound(folder: Path) -> bool:
    """Whether `folder` holds the three files with the checksums noted when they were written."""
    try:
        return (folder / _CHECKSUMS_NAME).read_text() == _checksums(folder)
    except (OSError, UnicodeDecodeError):
        return False
