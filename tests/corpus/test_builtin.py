"""The built-in corpus is the same everywhere, and shaped like the original."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from flannel_pl.corpus import alphabet
from flannel_pl.corpus.builtin import BUILTIN_SHA256, builtin_texts
from flannel_pl.corpus.draws import Draws, zipf_weights
from flannel_pl.corpus.lexicon import FUNCTION_WORDS
from flannel_pl.corpus.store import Corpus, load_corpus
from flannel_pl.corpus.tokenizer import END_OF_TEXT, load_tokenizer


@pytest.fixture(scope="module")
def texts() -> tuple[str, str]:
    return builtin_texts()


@pytest.fixture(scope="module")
def builtin_corpus() -> Corpus:
    return load_corpus(vocab_size=10_000)


def test_draws_use_the_raw_stream_of_pcg64() -> None:
    raw = np.random.PCG64(7).random_raw(3)
    assert Draws(7).below(1000, 3).tolist() == [int(value >> np.uint64(1)) % 1000 for value in raw]
    assert Draws(7).below(1000, 3).tolist() == [21, 162, 393]


def test_pick_follows_the_weights() -> None:
    counts = np.bincount(Draws(1).pick((6, 0, 3, 1), 100_000)) / 100_000
    assert counts[1] == 0
    np.testing.assert_allclose(counts, (0.6, 0, 0.3, 0.1), atol=0.01)


def test_zipf_weights_bend_at_head_and_tail() -> None:
    weights = zipf_weights(100_000, head=10, tail=1000)
    assert weights.dtype == np.int64
    assert weights[0] / weights[9] < 2 < weights[50] / weights[150]
    assert weights[10_000] / weights[20_000] == pytest.approx(3.8, abs=0.1)


def test_the_texts_are_the_same_to_the_byte(texts: tuple[str, str]) -> None:
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert digests == [BUILTIN_SHA256["tokenizer_text"], BUILTIN_SHA256["model_text"]]


def test_the_alphabet_has_the_original_numbers_of_characters(texts: tuple[str, str]) -> None:
    tokenizer_text, model_text = texts
    characters = set(tokenizer_text)
    assert [len(set(part)) for part in (alphabet.ASCII, alphabet.THAI, alphabet.OTHERS)] == [96, 86, 2618]
    assert characters == set(alphabet.ASCII + alphabet.THAI + alphabet.OTHERS)
    assert set(model_text) <= characters
    assert not set(model_text) & set(alphabet.THAI)


def test_the_texts_have_the_original_shape(texts: tuple[str, str]) -> None:
    tokenizer_text, model_text = texts
    thai_bytes = 3 * sum(tokenizer_text.count(character) for character in alphabet.THAI)
    assert thai_bytes / len(tokenizer_text.encode()) == pytest.approx(0.20, abs=0.025)
    assert len(tokenizer_text.encode()) == pytest.approx(20e6, rel=0.05)
    assert len(model_text) == pytest.approx(5_225_690, rel=0.02)
    assert tokenizer_text.startswith(model_text)
    assert model_text.count("\n\n") == 1607 - 1
    words = Counter(model_text.split())
    assert [words[word] for word in FUNCTION_WORDS[:3]] == sorted(
        (words[word] for word in FUNCTION_WORDS[:3]), reverse=True
    )


def test_the_figures_are_the_originals(builtin_corpus: Corpus) -> None:
    masks = builtin_corpus.masks
    counts = masks.token_occurrence_counts[masks.live_indices]
    assert len(masks.live_mask) == 10_000
    assert builtin_corpus.num_tokens == pytest.approx(1_371_328, rel=0.01)
    assert len(counts) == pytest.approx(6301, rel=0.02)
    assert np.median(counts) == pytest.approx(68, rel=0.15)
    assert counts.mean() == pytest.approx(217.6, rel=0.03)
    assert 0.030 < counts.max() / builtin_corpus.num_tokens < 0.036


def test_the_same_kinds_of_token_are_dead_as_in_the_original(builtin_corpus: Corpus) -> None:
    tokenizer = load_tokenizer(builtin_corpus.tokenizer_path, vocab_size=10_000)
    dead = Counter(_kind(tokenizer.id_to_token(i) or "") for i in builtin_corpus.masks.dead_indices.tolist())
    live = Counter(_kind(tokenizer.id_to_token(i) or "") for i in builtin_corpus.masks.live_indices.tolist())
    assert dead["thai"] == pytest.approx(1272, rel=0.02)
    assert live["thai"] == 0
    assert dead["other"] == pytest.approx(2384, rel=0.01)
    assert dead["english"] == pytest.approx(35, abs=15)
    assert (dead["blank"], live["blank"]) == (3, 0)
    assert not builtin_corpus.masks.live_mask[0]


def _kind(token: str) -> str:
    if token == END_OF_TEXT:
        return "special"
    if token.isspace():
        return "blank"
    if any(character in alphabet.THAI for character in token):
        return "thai"
    if not token.isascii():
        return "other"
    return "english" if token.isalpha() else "figure or mark"
