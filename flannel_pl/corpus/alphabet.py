"""The characters of the built-in corpus: 96 ASCII, 86 Thai and 2,618 others, as many as the original had."""


def _span(first: int, last: int) -> str:
    """Returns the characters of code points first .. last, both included."""
    return "".join(map(chr, range(first, last + 1)))


ASCII = "\n" + _span(0x20, 0x7E)
THAI_CONSONANTS = _span(0x0E01, 0x0E2E)
THAI = _span(0x0E01, 0x0E3A) + _span(0x0E3F, 0x0E5A)

# What occurs now and then in English text, the commonest first.
SYMBOLS = (
    "$%&/#+=*@_<>[]|{}~^\\`"
    "\u2022\u00a3\u20ac\u00e9\u00b0\u00ae\u2122\u00bd\u00f1\u00e1\u00ed\u00f3\u00fc\u2018\u00a0"
    + _span(0x00A1, 0x00AC)
    + _span(0x00AE, 0x00FF)
    + _span(0x2190, 0x2193)
    + _span(0x03B1, 0x03C9)
    + _span(0x0430, 0x044F)
    + _span(0x0410, 0x042F)
    + _span(0x0100, 0x0130)
)
_DASHES_AND_QUOTES = "\u2013\u2014\u2019\u201c\u201d\u2026"

# What only the tokenizer ever sees.
_ELSEWHERE = (
    _span(0x0131, 0x017F)  # Latin Extended-A
    + _span(0x0400, 0x040F)  # Cyrillic
    + _span(0x0450, 0x045F)
    + _span(0x05D0, 0x05EA)  # Hebrew
    + _span(0x0621, 0x063A)  # Arabic
    + _span(0x0905, 0x0939)  # Devanagari
    + _span(0x1E00, 0x1E9B)  # Latin Extended Additional
    + _span(0x2194, 0x21FF)  # arrows
    + _span(0x2200, 0x22FF)  # mathematics
    + _span(0x2500, 0x257F)  # box drawing
    + _span(0x3041, 0x3096)  # Hiragana
    + _span(0x30A1, 0x30FA)  # Katakana
    + _span(0xAC00, 0xAD00)  # Hangul
    + _span(0x1F600, 0x1F64F)  # emoji
    + _span(0x4E00, 0x5FFF)  # Chinese characters, as many as it takes
)

_NUM_OTHERS = 2618
_others = dict.fromkeys(_DASHES_AND_QUOTES + SYMBOLS + _ELSEWHERE)
OTHERS = "".join(character for character in _others if character not in ASCII)[:_NUM_OTHERS]
