"""The notebook's tokenizer recipe, and the refusals of what does not fit."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from flannel_pl.corpus.tokenizer import load_tokenizer, train_tokenizer
from flannel_pl.errors import UserError
from tests.corpus.corpus_samples import PANGRAMS, run_python


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([PANGRAMS], vocab_size=80)


def test_special_token_comes_first_then_the_characters_in_order_then_merges(tokenizer: Tokenizer) -> None:
    entries = [tokenizer.id_to_token(i) or "" for i in range(80)]
    alphabet = sorted(set(PANGRAMS))
    assert entries[0] == "<|endoftext|>"
    assert entries[1 : 1 + len(alphabet)] == alphabet
    assert {"\n", " "} < set(alphabet)
    assert all(len(entry) >= 2 for entry in entries[1 + len(alphabet) :])
    assert len(set(entries)) == 80


def test_it_is_the_notebooks_recipe(tokenizer: Tokenizer) -> None:
    written = json.loads(tokenizer.to_str())
    assert (written["model"]["type"], written["model"]["unk_token"]) == ("BPE", None)
    assert written["model"]["byte_fallback"] is False
    assert written["pre_tokenizer"] == {"type": "Whitespace"}
    assert [written[part] for part in ("normalizer", "decoder", "post_processor")] == [None, None, None]
    assert [(t["id"], t["content"], t["special"]) for t in written["added_tokens"]] == [
        (0, "<|endoftext|>", True)
    ]


def test_words_and_marks_are_split_and_blanks_vanish(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("the dog;\n\n the fox.").tokens
    assert "".join(tokens) == "thedog;thefox."
    assert ";" in tokens
    assert tokens.count("the") == 2


def test_min_frequency_is_obeyed() -> None:
    text = "ab ab ab cd cd"
    assert train_tokenizer([text], vocab_size=8, min_frequency=2).get_vocab()["cd"] == 7
    with pytest.raises(UserError, match="enough for 7 vocabulary entries"):
        train_tokenizer([text], vocab_size=8, min_frequency=3)


def test_several_texts_count_as_one() -> None:
    middle = PANGRAMS.index("\n", 1000)
    halves = PANGRAMS[:middle], PANGRAMS[middle:]
    assert (
        train_tokenizer(halves, vocab_size=80).to_str() == train_tokenizer([PANGRAMS], vocab_size=80).to_str()
    )


def test_training_is_deterministic_to_the_byte_whatever_the_threads(tokenizer: Tokenizer) -> None:
    code = (
        "from flannel_pl.corpus.tokenizer import train_tokenizer;"
        "from tests.corpus.corpus_samples import PANGRAMS;"
        "print(train_tokenizer([PANGRAMS], vocab_size=80).to_str())"
    )
    for threads in ("1", "2"):
        assert run_python(code, RAYON_NUM_THREADS=threads) == tokenizer.to_str()


def test_too_little_text_is_refused_with_what_it_is_enough_for() -> None:
    with pytest.raises(
        UserError, match=r"enough for 9 vocabulary entries, not for 10,000: add text, or pass"
    ):
        train_tokenizer(["abc abd abc abd"], vocab_size=10_000)


def test_more_characters_than_entries_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"has 5 distinct characters, .* 5 vocabulary entries: .* --vocab_size 6"
    ):
        train_tokenizer(["abcd abcd"], vocab_size=5)


def test_load_returns_what_was_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert load_tokenizer(path, vocab_size=80).to_str() == tokenizer.to_str()


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer not found: .*none\.json.*flannel-pl prepare"):
        load_tokenizer(tmp_path / "none.json", vocab_size=80)


@pytest.mark.parametrize("content", ["", "hello", "{}", '{"version": "1.0", "model": {}}'])
def test_load_refuses_what_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"not a tokenizer: .*tokenizer\.json.*flannel-pl prepare makes one"):
        load_tokenizer(path, vocab_size=80)


def test_load_refuses_another_size(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    expected = (
        r"has 80 entries but model.vocab_size is 10,000: .*--model.vocab_size 80.*prepare --vocab_size 10000"
    )
    with pytest.raises(UserError, match=expected):
        load_tokenizer(path, vocab_size=10_000)
