"""The verb `prepare`: three files, or none."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from flannel_pl.corpus import datafiles, store
from flannel_pl.corpus import prepare as prepare_module
from flannel_pl.corpus.masks import TokenMasks
from flannel_pl.corpus.prepare import prepare
from flannel_pl.corpus.store import load_corpus
from flannel_pl.corpus.tokenizer import train_tokenizer
from flannel_pl.errors import RunError, UserError
from tests.corpus.corpus_samples import PANGRAMS

NAMES = ["flannel_model_corpus.txt", "flannel_tokenizer_chars.json", "live_dead_tokens.safetensors"]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "model.txt")]
    for path, text in zip(
        paths, (PANGRAMS.replace("\n", " "), "\u0e01\u0e02 \u0e01\u0e02", PANGRAMS[:3000]), strict=True
    ):
        path.write_text(text, encoding="utf-8")
    return paths


def test_it_writes_the_notebooks_three_files(texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    prepare(tokenizer_text=texts[:2], model_text=texts[2], out=out, vocab_size=80)
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert (out / NAMES[0]).read_bytes() == texts[2].read_bytes()
    joined = "\n\n".join(path.read_text(encoding="utf-8") for path in texts[:2])
    tokenizer = Tokenizer.from_file(str(out / NAMES[1]))
    assert "\n" in tokenizer.get_vocab()
    assert tokenizer.to_str() == train_tokenizer([joined], vocab_size=80).to_str()
    counts = np.bincount(tokenizer.encode(PANGRAMS[:3000]).ids, minlength=80)
    assert np.array_equal(load_file(out / NAMES[2])["token_occurrence_counts"], counts)
    assert load_file(out / NAMES[2])["dead_mask"][tokenizer.token_to_id("\u0e01")]


def test_it_tells_the_figures_and_what_to_do_next(
    texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare(tokenizer_text=texts[:1], model_text=texts[2], out=out, vocab_size=80)
    counts = load_file(out / NAMES[2])["token_occurrence_counts"]
    live = counts[counts > 0]
    printed = capsys.readouterr().out
    for line in (
        f"tokens: {counts.sum():,}",
        f"live:   {len(live)}, dead: {80 - len(live)}",
        f"median {np.median(live):,.0f}, largest {live.max()} ({live.max() / counts.sum():.2%} of all)",
        f"--data.corpus_path {out / NAMES[0]}",
        f"--data.tokenizer_path {out / NAMES[1]}",
        f"--data.mask_path {out / NAMES[2]}",
        "--model.vocab_size 80",
    ):
        assert line in printed


def test_what_it_made_is_not_tokenized_again(
    texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(store, "tokenize")
    prepare(tokenizer_text=texts[:1], model_text=texts[2], out=tmp_path / "out", vocab_size=80)
    paths = [tmp_path / "out" / name for name in NAMES]
    corpus = load_corpus(corpus_path=paths[0], tokenizer_path=paths[1], mask_path=paths[2], vocab_size=80)
    assert corpus.num_tokens > 500


def test_it_overwrites_nothing(texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAMES[1]).write_text("mine")
    with pytest.raises(
        UserError, match=rf"exists already: .*{NAMES[1]}\. Nothing is overwritten: choose another"
    ):
        prepare(tokenizer_text=texts[:1], model_text=texts[2], out=out, vocab_size=80)
    assert [path.name for path in out.iterdir()] == [NAMES[1]]
    assert (out / NAMES[1]).read_text() == "mine"


def test_other_files_in_the_folder_stay(texts: list[Path], tmp_path: Path) -> None:
    prepare(tokenizer_text=texts[:1], model_text=texts[2], out=tmp_path, vocab_size=80)
    assert {"a.txt", "b.txt", "cache", "model.txt", *NAMES} == {path.name for path in tmp_path.iterdir()}


def test_a_failure_leaves_nothing(texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="vocabulary entries, not for 5,000"):
        prepare(tokenizer_text=texts[:1], model_text=texts[2], out=out, vocab_size=5000)
    assert not out.exists()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenMasks, "save", disk_full)
    with pytest.raises(RunError, match=r"cannot write to .*out: .*No space left on device\. Free space"):
        prepare(tokenizer_text=texts[:1], model_text=texts[2], out=out, vocab_size=80)
    assert not out.exists()


def test_an_output_folder_that_cannot_be_made_is_refused(texts: list[Path]) -> None:
    with pytest.raises(
        UserError, match=r"cannot make a folder in .*a\.txt.*: Not a directory\. Choose another --out"
    ):
        prepare(tokenizer_text=texts[:1], model_text=texts[2], out=texts[0] / "out", vocab_size=80)


def test_bad_texts_are_refused_by_name(texts: list[Path], tmp_path: Path) -> None:
    texts[1].write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8: byte 0xff at offset 0"):
        prepare(tokenizer_text=texts[:2], model_text=texts[2], out=tmp_path / "out", vocab_size=80)
    with pytest.raises(UserError, match=r"cannot read the model text .*none"):
        prepare(tokenizer_text=texts[:1], model_text=tmp_path / "none", out=tmp_path / "out", vocab_size=80)
    assert not (tmp_path / "out").exists()


def test_incomplete_arguments_are_refused(texts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model_text is missing\. Give both"):
        prepare(tokenizer_text=texts[:1], out=tmp_path / "out")
    with pytest.raises(UserError, match=r"--tokenizer_text is missing\. Give both"):
        prepare(model_text=texts[2], out=tmp_path / "out")
    with pytest.raises(UserError, match=r"--out is missing\. Name a folder"):
        prepare(tokenizer_text=texts[:1], model_text=texts[2])
    with pytest.raises(UserError, match=r"--out is missing\. Name a folder"):
        prepare(vocab_size=5000)


@pytest.fixture
def small_builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (datafiles, prepare_module):
        monkeypatch.setattr(module, "builtin_texts", lambda: (PANGRAMS, PANGRAMS[:2000]))
    for module in (datafiles, prepare_module, store):
        monkeypatch.setattr(module, "BUILTIN_VOCAB_SIZE", 80)


@pytest.mark.usefixtures("small_builtin")
def test_without_text_it_prepares_the_builtin_corpus(
    tmp_path: Path, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(vocab_size=80)
    (folder,) = fresh_cache.glob("builtin-*")
    assert f"--data.corpus_path {folder / NAMES[0]}" in capsys.readouterr().out
    prepare(vocab_size=80, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.usefixtures("small_builtin")
def test_the_builtin_text_with_another_vocabulary_size(tmp_path: Path) -> None:
    prepare(vocab_size=60, out=tmp_path / "out")
    assert Tokenizer.from_file(str(tmp_path / "out" / NAMES[1])).get_vocab_size() == 60
    assert (tmp_path / "out" / NAMES[0]).read_text() == PANGRAMS[:2000]
