"""The built-in corpus: text generated from a fixed seed, shaped like the one the notebook used.

The notebook's text cannot be shipped, so every content word here is made up. What the experiment needs of
a text is its statistics: how often tokens occur, and how many never do. The parameters below were tuned
by generating, training the tokenizer and counting until the figures met the original's;
`tests/corpus/test_builtin.py` has both. First the laws of word frequency (they set the median count) and
the number of stems (pieces per word), then how often symbols occur (other live tokens), then the Thai law
(how many merges Thai takes and leaves dead), last the length of sentences (the largest share, and with
the number of documents the number of tokens).
"""

import itertools
from collections.abc import Iterable

import numpy as np

from flannel_pl.corpus import alphabet
from flannel_pl.corpus.draws import Draws, Integers, zipf_weights
from flannel_pl.corpus.lexicon import FUNCTION_WORDS, english_words, thai_words

BUILTIN_VOCAB_SIZE = 10_000
BUILTIN_SHA256 = {
    "tokenizer_text": "d95985672ff33e6dd626795e52a9d7ae9f3e961603fb260fef05c049833d185e",
    "model_text": "2efaed0abdfca4c96b14ce7e43e3c25599c9a183920b1651aabc0bf66aeaccd9",
}

_SEED = 3
_NUM_DOCUMENTS = 4700
_NUM_MODEL_DOCUMENTS = 1607  # as in the original
_MAX_SENTENCES = 63  # per document, at least 5
_MAX_WORDS = 31  # per sentence, at least 3

# The lexicons: stems and words drawn, disorder of word lengths in letters, and the law of word frequency.
_STEMS, _WORDS, _SPREAD, _HEAD, _TAIL = 3000, 90_000, 8, 300, 12_000
_THAI_WORDS, _THAI_SPREAD, _THAI_HEAD, _THAI_TAIL = 30_000, 6, 15, 2500
_THAI_PHRASES = 105_000

# How often an English word is not a content word.
_FUNCTION_WORDS_PER_10_000 = 4200
_NUMBERS_PER_10_000 = 200
_SYMBOLS_PER_10_000 = 35

# What follows a word inside a sentence, what encloses a sentence, what ends one; each with its weight.
_INNER_MARKS = {
    " ": 9300,
    ", ": 490,
    "-": 60,
    "'s ": 50,
    "\u2019s ": 50,
    ": ": 14,
    " \u2013 ": 12,
    " - ": 12,
    "\u2014": 8,
    "; ": 8,
    "/": 6,
}
_QUOTES = {("", ""): 915, ('"', '"'): 35, ("\u201c", "\u201d"): 35, ("(", ")"): 15}
_ENDS = {".": 890, "?": 45, "!": 40, ":": 15, "...": 6, "\u2026": 4}
_GAPS = (" ", "\n", "\n\n")


class _Pieces:
    """Texts to put a long text together from, by position."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, texts: Iterable[str]) -> int:
        """Adds texts and returns the position of the first."""
        first = len(self._texts)
        self._texts.extend(texts)
        return first

    def add_capitalized(self) -> int:
        """Adds each text again with a capital, and returns how far that is from the plain one."""
        return self.add([_capitalized(text) for text in self._texts])

    def join(self, positions: Integers) -> str:
        """Returns the texts at `positions`, joined row by row."""
        return "".join(map(self._texts.__getitem__, positions.ravel().tolist()))


def builtin_texts() -> tuple[str, str]:
    """Returns the built-in tokenizer text and model text.

    As in the original, the tokenizer text is English-like documents (about four fifths of the bytes) and
    then Thai-script text; here a short part with every rare character follows. The model text is the
    first 1,607 of those English-like documents, as the original's lies within its tokenizer text.
    """
    documents = _english_text(Draws(_SEED)).split("\n\n")
    parts = [*documents, _thai_text(Draws(_SEED + 1)), _rare_characters(Draws(_SEED + 2))]
    return "\n\n".join(parts), "\n\n".join(documents[:_NUM_MODEL_DOCUMENTS])


def _english_text(draws: Draws) -> str:
    """Returns the English-like documents, with a blank line between."""
    sentences = 5 + draws.below(_MAX_SENTENCES - 4, _NUM_DOCUMENTS)
    size = int(sentences.sum())
    words = 3 + draws.below(_MAX_WORDS // 2, size) + draws.below(_MAX_WORDS // 2, size)
    ends = np.cumsum(words) - 1
    starts = ends + 1 - words
    text = np.empty((int(words.sum()), 3), dtype=np.int64)  # what precedes a word, the word, what follows it

    pieces = _Pieces()
    text[:, 1] = _english_words(draws, pieces, len(text))
    text[starts, 1] += pieces.add_capitalized()

    quotes = draws.pick(_QUOTES.values(), size)
    text[:, 0] = pieces.add([""])
    text[starts, 0] = pieces.add(opening for opening, _ in _QUOTES) + quotes

    gaps = (draws.below(6, size) == 0).astype(np.int64)  # a paragraph has six sentences, on average
    gaps[np.cumsum(sentences) - 1] = 2
    endings = itertools.product(_ENDS, (closing for _, closing in _QUOTES), _GAPS)
    chosen = (draws.pick(_ENDS.values(), size) * len(_QUOTES) + quotes) * len(_GAPS) + gaps
    text[:, 2] = pieces.add(_INNER_MARKS) + draws.pick(_INNER_MARKS.values(), len(text))
    text[ends, 2] = pieces.add("".join(ending) for ending in endings) + chosen
    return pieces.join(text).strip()


def _english_words(draws: Draws, pieces: _Pieces, size: int) -> Integers:
    """Adds the words to `pieces` and returns the positions of `size` words of running text."""
    content = english_words(draws, num_stems=_STEMS, num_words=_WORDS, spread=_SPREAD)
    content[::12] = map(_capitalized, content[::12])  # names
    chosen = pieces.add(content) + draws.pick(zipf_weights(len(content), head=_HEAD, tail=_TAIL), size)
    for texts, per_10_000, head, tail in (
        (FUNCTION_WORDS, _FUNCTION_WORDS_PER_10_000, 3, 200),
        (_numbers(), _NUMBERS_PER_10_000, 4, 400),
        (alphabet.SYMBOLS, _SYMBOLS_PER_10_000, 3, 300),
    ):
        where = np.flatnonzero(draws.chance(per_10_000, size))
        law = zipf_weights(len(texts), head=head, tail=tail)
        chosen[where] = pieces.add(texts) + draws.pick(law, len(where))
    return chosen


def _capitalized(text: str) -> str:
    """Returns the text with a capital; a character beyond ASCII stays, or the alphabet would grow."""
    return text[0].upper() + text[1:] if text[0].isascii() else text


def _numbers() -> list[str]:
    """Returns numbers, the commonest first: small ones and years in turn, round ones, the rest."""
    small_and_years = itertools.chain.from_iterable(zip(range(1, 32), range(2024, 1993, -1), strict=True))
    rounds = (digit * scale for scale in (10, 100, 1000) for digit in range(1, 10))
    numbers = itertools.chain(small_and_years, rounds, range(1993, 1939, -1), range(1000))
    return [str(number) for number in dict.fromkeys(numbers)]


def _thai_text(draws: Draws) -> str:
    """Returns the Thai-script text: phrases of words without spaces between, as Thai is written."""
    pieces = _Pieces()
    words = thai_words(draws, num_words=_THAI_WORDS, spread=_THAI_SPREAD)
    lengths = 2 + draws.below(7, _THAI_PHRASES)
    text = np.empty((int(lengths.sum()), 2), dtype=np.int64)  # a word, what follows it
    law = zipf_weights(len(words), head=_THAI_HEAD, tail=_THAI_TAIL)
    text[:, 0] = pieces.add(words) + draws.pick(law, len(text))
    text[:, 1] = pieces.add([""])
    text[np.cumsum(lengths) - 1, 1] = pieces.add(_GAPS) + draws.pick((90, 9, 1), _THAI_PHRASES)
    return pieces.join(text).strip()


def _rare_characters(draws: Draws) -> str:
    """Returns every character of the alphabet three times, in random order, each on its own."""
    characters = 3 * (alphabet.ASCII.strip() + alphabet.THAI + alphabet.OTHERS)
    order = np.argsort(draws.below(2**62, len(characters)), kind="stable")
    return " ".join(characters[i] for i in order.tolist())
