"""The verb `prepare`: from text to the notebook's three data files."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flannel_pl.corpus.builtin import BUILTIN_VOCAB_SIZE, builtin_texts
from flannel_pl.corpus.datafiles import (
    CORPUS_NAME,
    FILE_NAMES,
    TOKENIZER_NAME,
    builtin_folder,
    write_data_files,
)
from flannel_pl.corpus.files import decode, read_bytes, temporary_beside
from flannel_pl.corpus.progress import stages
from flannel_pl.corpus.store import load_corpus
from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import MASKS_NAME
from flannel_pl.signals import interruptible


def prepare(
    tokenizer_text: Sequence[str | Path] | None = None,
    model_text: str | Path | None = None,
    out: str | Path | None = None,
    vocab_size: int = BUILTIN_VOCAB_SIZE,
    min_frequency: int = 2,
) -> None:
    """See `prepare_verb`; paths may be texts."""
    prepare_verb(
        None if tokenizer_text is None else [Path(one) for one in tokenizer_text],
        None if model_text is None else Path(model_text),
        None if out is None else Path(out),
        vocab_size,
        min_frequency,
    )


def prepare_verb(
    tokenizer_text: list[Path] | None = None,
    model_text: Path | None = None,
    out: Path | None = None,
    vocab_size: int = BUILTIN_VOCAB_SIZE,
    min_frequency: int = 2,
) -> None:
    """Makes the three data files that fit reads: model text, tokenizer, and masks of live and dead tokens.

    Without any text it prepares the built-in corpus, in the cache or in --out. Nothing is ever overwritten.

    Args:
        tokenizer_text: UTF-8 files for the tokenizer to learn from, joined in this order by blank lines.
        model_text: The UTF-8 file for the model to learn from.
        out: Folder for flannel_model_corpus.txt, flannel_tokenizer_chars.json and
            live_dead_tokens.safetensors; made if need be.
        vocab_size: Entries of the tokenizer: `<|endoftext|>`, every character of its text, and merges.
        min_frequency: How often two pieces must stand side by side to be merged into an entry.

    Raises:
        UserError: A text is missing, blank, not UTF-8 or too short for so many entries; a file exists
            already; the folder cannot be made.
        RunError: The files cannot be written.
    """
    if (tokenizer_text is None) != (model_text is None):
        missing = "--tokenizer_text" if tokenizer_text is None else "--model_text"
        raise UserError(
            f"{missing} is missing."
            " Give both --tokenizer_text and --model_text, or neither for the built-in corpus"
        )
    is_stock = model_text is None and (vocab_size, min_frequency) == (BUILTIN_VOCAB_SIZE, 2)
    if out is None:
        if not is_stock:
            raise UserError("--out is missing. Name a folder for the three files, e.g. --out data")
        _report(builtin_folder(), vocab_size=vocab_size)
        return
    with interruptible(), _filled(out) as folder:
        if is_stock:
            source = builtin_folder()
            for name in FILE_NAMES:
                shutil.copyfile(source / name, folder / name)
        else:
            _write_from_text(folder, tokenizer_text, model_text, vocab_size, min_frequency)
    _report(out, vocab_size=vocab_size)


def _write_from_text(
    folder: Path,
    tokenizer_text: list[Path] | None,
    model_text: Path | None,
    vocab_size: int,
    min_frequency: int,
) -> None:
    """Writes the three files for the texts in the named files, or for the built-in ones."""
    with stages("preparing the data files", total=3, show=True) as do:
        learned, modelled = do("reading text", lambda: _texts(tokenizer_text, model_text))
        write_data_files(
            folder,
            tokenizer_text=learned,
            model_text=modelled,
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            source=model_text or folder / CORPUS_NAME,
            do=do,
        )


def _texts(tokenizer_text: list[Path] | None, model_text: Path | None) -> tuple[str, str]:
    """Returns what the tokenizer and what the model is to learn from."""
    if tokenizer_text is None or model_text is None:
        return builtin_texts()
    learned = "\n\n".join(_read(path, role="tokenizer text") for path in tokenizer_text)
    return learned, _read(model_text, role="model text")


def _read(path: Path, *, role: str) -> str:
    """Returns the text of a file the user named."""
    return decode(read_bytes(path, role=role), path=path)


@contextmanager
def _filled(out: Path) -> Iterator[Path]:
    """Yields a folder to write the three files into; they move to `out` afterwards, or none does."""
    existing = [str(out / name) for name in FILE_NAMES if (out / name).exists()]
    if existing:
        raise UserError(
            f"exists already: {', '.join(existing)}. Nothing is overwritten: choose another --out"
        )
    is_new, moved = not out.exists(), list[Path]()
    temporary = temporary_beside(out / "prepare")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make a folder in {out}: {error.strerror}. Choose another --out") from error
    try:
        yield temporary
        for name in FILE_NAMES:
            moved.append(out / name)
            (temporary / name).replace(out / name)
        moved = []
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error}. Free space or choose another --out") from error
    finally:
        for path in moved:
            path.unlink(missing_ok=True)
        shutil.rmtree(temporary)
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _report(folder: Path, *, vocab_size: int) -> None:
    """Prints what is in the folder and how to use it."""
    paths = {
        "corpus_path": folder / CORPUS_NAME,
        "tokenizer_path": folder / TOKENIZER_NAME,
        "mask_path": folder / MASKS_NAME,
    }
    corpus = load_corpus(vocab_size=vocab_size, progress=False, **paths)
    counts = corpus.masks.token_occurrence_counts[corpus.masks.live_indices]
    print("data files:", *paths.values(), sep="\n  ")
    print(f"tokens: {corpus.num_tokens:,}")
    print(f"live:   {len(counts):,}, dead: {vocab_size - len(counts):,}")
    print(f"occurrences of a live token: median {np.median(counts):,.0f}, largest {counts.max():,}", end="")
    print(f" ({counts.max() / corpus.num_tokens:.2%} of all)")
    print("use them with")
    print(*(f"  --data.{key} {path}" for key, path in paths.items()), sep="\n")
    if vocab_size != BUILTIN_VOCAB_SIZE:
        print(f"  --model.vocab_size {vocab_size}")
