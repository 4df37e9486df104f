"""The notebook's tokenizer: character-level BPE without normalizer, decoder or unknown token."""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

from flannel_pl.errors import UserError

END_OF_TEXT = "<|endoftext|>"

LONG_WORD = 20_000
"""Characters of a word that is worth a warning: one of 80,000 took 7 seconds on one core."""

_WORD = re.compile(r"\w+|[^\w\s]+")
"""What the `Whitespace` pre-tokenizer takes for a word."""


def train_tokenizer(texts: Sequence[str], *, vocab_size: int = 10_000, min_frequency: int = 2) -> Tokenizer:
    """Trains the notebook's tokenizer. The same texts give the same tokenizer, to the byte.

    Entry 0 is `<|endoftext|>`, which text never contains; then comes every character of the texts in code
    point order, blanks included; then come the merges. The `Whitespace` pre-tokenizer splits text into
    runs of word characters and runs of punctuation, and drops the blanks between.

    Args:
        texts: What to learn from.
        vocab_size: Entries wanted, exactly.
        min_frequency: How often a pair must occur to be merged.

    Raises:
        UserError: The texts have more characters than `vocab_size`, or too few pairs to reach it.
    """
    alphabet = sorted(set().union(*texts))
    if len(alphabet) + 1 > vocab_size:
        raise UserError(
            f"the text has {len(alphabet):,} distinct characters, which with {END_OF_TEXT} do not fit into"
            f" {vocab_size:,} vocabulary entries: pass --vocab_size {len(alphabet) + 1} or more"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(texts), trainer)
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(
            f"the text is enough for {size:,} vocabulary entries, not for {vocab_size:,}: add text, or pass"
            f" --vocab_size {size}"
        )
    return tokenizer


def warn_of_long_words(text: str) -> None:
    """Warns of a word that the trainer will need long for: its time grows with the square of the length."""
    long_lines = (line for line in text.split("\n") if len(line) >= LONG_WORD)
    longest = max((word for line in long_lines for word in _WORD.findall(line)), key=len, default="")
    if len(longest) >= LONG_WORD:
        print(
            f"flannel-pl: the tokenizer text has a word of {len(longest):,} characters without a blank, "
            f"{longest[:12]!a}...; training the tokenizer takes four times as long for one twice as long",
            file=sys.stderr,
            flush=True,
        )


def _lines(texts: Sequence[str]) -> Iterator[str]:
    """Yields the texts line by line: the trainer counts lines in parallel, and no token spans two lines."""
    return itertools.chain.from_iterable(text.split("\n") for text in texts)


def load_tokenizer(path: Path, *, vocab_size: int) -> Tokenizer:
    """Reads a tokenizer file.

    Args:
        path: JSON as written by `tokenizers`.
        vocab_size: Entries the tokenizer must have, added tokens included.

    Raises:
        UserError: The file is missing, is no tokenizer, or has another number of entries.
    """
    if not path.is_file():
        raise UserError(
            f"tokenizer not found: {path}. Check data.tokenizer_path, or make one with flannel-pl prepare"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for everything
        raise UserError(
            f"not a tokenizer: {path} ({error}). Expected JSON as written by tokenizers.Tokenizer.save;"
            " flannel-pl prepare makes one"
        ) from error
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(
            f"the tokenizer has {size:,} entries but model.vocab_size is {vocab_size:,}: {path}."
            f" Set --model.vocab_size {size}, or make another: flannel-pl prepare --vocab_size {vocab_size}"
        )
    return tokenizer
