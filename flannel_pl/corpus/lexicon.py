"""Made-up words: an English-like lexicon and a Thai-like one, the commonest word first."""

from collections.abc import Sequence
from dataclasses import dataclass

from flannel_pl.corpus.alphabet import THAI_CONSONANTS
from flannel_pl.corpus.draws import Draws

_FUNCTION_WORDS = """
    the of and to a in is that for it with as on are was be this you by or I at from have not an we can
    they your which their has but will all more one he if his my so there what about when who our were
    her also do out up been other some time than how would only its had into like just most no them she
    these may then many over any such after first where new because even should two make those use
    through between well could much own very before get good being each both under don't it's while too
    me now here him us made way same did must since still however during without another does within
    around off against why though every again long down until
"""
FUNCTION_WORDS = _FUNCTION_WORDS.split()

Weighted = Sequence[tuple[str, int]]


def _weighted(parts: str) -> Weighted:
    """Reads "ab:3 -:1" as (("ab", 3), ("", 1)): texts with their weights, "-" for the empty one."""
    pairs = (part.split(":") for part in parts.split())
    return tuple(("" if text == "-" else text, int(weight)) for text, weight in pairs)


@dataclass(frozen=True)
class _Syllables:
    """What a syllable is put together from."""

    onsets: Weighted
    nuclei: Weighted
    codas: Weighted


_ENGLISH = _Syllables(
    onsets=_weighted("""
        -:9 b:7 c:9 d:8 f:6 g:5 h:6 j:2 k:3 l:8 m:8 n:6 p:8 qu:1 r:9 s:9 t:9 v:4 w:4 y:1 z:1
        bl:1 br:2 ch:3 cl:2 cr:2 dr:1 fl:1 fr:2 gl:1 gr:2 pl:2 pr:3 sc:1 sh:3 sl:1 sp:2 st:4 str:2 th:3
        tr:3 wh:1
    """),
    nuclei=_weighted("a:14 e:17 i:13 o:12 u:6 ai:1 ay:1 ea:3 ee:2 ie:1 io:1 oa:1 oo:2 ou:3 y:1"),
    codas=_weighted("""
        -:30 b:1 c:3 d:4 f:1 g:2 k:2 l:6 m:4 n:10 p:2 r:10 s:6 t:8 v:1 w:1 x:1 ce:1 de:1 le:2 ne:2 re:2
        se:2 te:2 ve:2 ch:1 ck:2 ct:1 ll:2 lt:1 mp:1 nd:3 ng:2 nk:1 nt:3 pt:1 rd:1 rm:1 rn:1 rt:1 sh:1 ss:2
        st:3 th:1
    """),
)
_PREFIXES = _weighted(
    "-:80 ad:1 com:2 con:3 de:2 dis:2 ex:2 in:3 inter:1 non:1 over:1 pre:1 pro:2 re:3 sub:1 un:3"
)
_SUFFIXES = _weighted("""
    -:40 s:16 ed:9 ing:10 er:6 ers:2 ly:6 y:3 al:3 ical:1 ial:1 ic:2 able:2 ful:1 ive:2 ous:2 est:1 en:1
    ish:1 ism:1 ist:1 age:1 ance:1 ence:1 ity:2 ment:2 ness:1 tion:4 tions:1
""")

_THAI = _Syllables(
    onsets=tuple((letter, 40 // (rank // 3 + 1)) for rank, letter in enumerate(THAI_CONSONANTS)),
    nuclei=_weighted("""
        -:6 \u0e30:5 \u0e31:9 \u0e32:12 \u0e33:2 \u0e34:6 \u0e35:7 \u0e36:1 \u0e38:4 \u0e39:4
        \u0e47:2 \u0e48:3 \u0e49:3 \u0e4c:1 \u0e34\u0e4c:1 \u0e35\u0e48:4 \u0e37\u0e48:2
        \u0e48\u0e32:4 \u0e49\u0e32:5
    """),
    codas=_weighted("-:46 \u0e01:6 \u0e07:6 \u0e14:6 \u0e19:6 \u0e1a:6 \u0e21:6 \u0e22:6 \u0e23:6 \u0e27:6"),
)


def english_words(draws: Draws, *, num_stems: int, num_words: int, spread: int) -> list[str]:
    """Returns the English-like lexicon without function words, the commonest first.

    A word is a stem with a prefix and a suffix, most of which are empty. So words come in families, and a
    rare word is spelled from the pieces of common ones.

    Args:
        draws: Where chance comes from.
        num_stems: Number of stems.
        num_words: Number of words to draw; repeated ones count once.
        spread: How far, in letters of length, a word may stand from its place in an order by length.
    """
    stems = _stems(draws, num_stems)
    parts = (
        _choices(draws, _PREFIXES, num_words),
        [stems[i] for i in draws.below(num_stems, num_words).tolist()],
        _choices(draws, _SUFFIXES, num_words),
    )
    words = {"".join(word): None for word in zip(*parts, strict=True)}
    made_up = [word for word in words if len(word) > 1 and word not in FUNCTION_WORDS]
    return _shortest_first(draws, made_up, spread=spread)


def thai_words(draws: Draws, *, num_words: int, spread: int) -> list[str]:
    """Returns the Thai-like lexicon, the commonest word first: words of one to three syllables.

    Args:
        draws: Where chance comes from.
        num_words: Number of words to draw; repeated ones count once.
        spread: How far, in letters of length, a word may stand from its place in an order by length.
    """
    syllables = [_syllables(draws, _THAI, num_words) for _ in range(3)]
    counts = draws.pick((3, 4, 2), num_words).tolist()
    words = {"".join(parts[: count + 1]): None for *parts, count in zip(*syllables, counts, strict=True)}
    return _shortest_first(draws, list(words), spread=spread)


def _choices(draws: Draws, parts: Weighted, size: int) -> list[str]:
    """Returns `size` of `parts`, drawn by weight."""
    return [parts[i][0] for i in draws.pick((weight for _, weight in parts), size).tolist()]


def _syllables(draws: Draws, kind: _Syllables, size: int) -> list[str]:
    """Returns `size` random syllables."""
    parts = (_choices(draws, part, size) for part in (kind.onsets, kind.nuclei, kind.codas))
    return ["".join(syllable) for syllable in zip(*parts, strict=True)]


def _stems(draws: Draws, size: int) -> list[str]:
    """Returns `size` English-like stems: one syllable three times in eight, else two."""
    first, second = (_syllables(draws, _ENGLISH, size) for _ in range(2))
    is_short = draws.chance(3750, size).tolist()
    return [one if short else one + two for one, two, short in zip(first, second, is_short, strict=True)]


def _shortest_first(draws: Draws, words: Sequence[str], *, spread: int) -> list[str]:
    """Orders words by length plus noise, as common words tend to be short."""
    noise = draws.below(100 * spread, len(words)).tolist()
    keys = [100 * len(word) + extra for word, extra in zip(words, noise, strict=True)]
    return [words[i] for i in sorted(range(len(words)), key=keys.__getitem__)]
