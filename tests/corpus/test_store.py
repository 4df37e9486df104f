"""`load_corpus`: the notebook's tokens, made once, and clear refusals."""

import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from flannel_pl.corpus import datafiles, store
from flannel_pl.corpus.cache import cache_folder
from flannel_pl.corpus.files import temporary_beside
from flannel_pl.corpus.masks import TokenMasks
from flannel_pl.corpus.store import Corpus, load_corpus
from flannel_pl.corpus.tokenizer import train_tokenizer
from flannel_pl.errors import RunError, UserError
from tests.corpus.corpus_samples import PANGRAMS, run_python


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(folder))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    corpus_path, tokenizer_path = tmp_path / "corpus.txt", tmp_path / "tokenizer.json"
    corpus_path.write_bytes(PANGRAMS.encode())
    train_tokenizer([PANGRAMS], vocab_size=80).save(str(tokenizer_path))
    return {"corpus_path": corpus_path, "tokenizer_path": tokenizer_path}


def load(files: dict[str, Path]) -> Corpus:
    return load_corpus(vocab_size=80, progress=False, **files)


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("done twice")


def as_the_notebook_does(files: dict[str, Path]) -> list[int]:
    with open(files["corpus_path"], encoding="utf-8") as f:  # noqa: PTH123
        text = f.read()
    ids: list[int] = Tokenizer.from_file(str(files["tokenizer_path"])).encode(text).ids
    return ids


def test_tokens_are_the_notebooks(files: dict[str, Path]) -> None:
    corpus = load(files)
    assert corpus.tokens.tolist() == as_the_notebook_does(files)
    assert corpus.num_tokens == len(corpus.tokens) > 1000
    assert corpus.tokens.dtype == np.uint16
    assert isinstance(corpus.tokens, np.memmap)
    assert not corpus.tokens.flags.writeable
    assert np.array_equal(corpus.masks.live_indices, np.unique(corpus.tokens))
    assert corpus.mask_path is None


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_newlines_are_read_as_the_notebook_reads_them(files: dict[str, Path], newline: str) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "\n": 1, "\r": 2, "\n\n": 3}, merges=[("\n", "\n")]))
    tokenizer.save(str(files["tokenizer_path"]))
    files["corpus_path"].write_bytes(f"a{newline}{newline}a".encode())
    assert load_corpus(vocab_size=4, progress=False, **files).tokens.tolist() == [0, 3, 0]
    assert as_the_notebook_does(files) == [0, 3, 0]


def test_nobody_tokenizes_twice(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(files)
    monkeypatch.setattr(store, "tokenize", forbid)
    again = load(files)
    assert again.tokens_path == first.tokens_path
    assert again.digests == first.digests
    moved = files["corpus_path"].rename(files["corpus_path"].with_name("moved.txt"))
    assert load({**files, "corpus_path": moved}).tokens_path == first.tokens_path


def test_what_a_killed_process_left_in_the_cache_goes_with_the_next(
    files: dict[str, Path], fresh_cache: Path
) -> None:
    load(files)
    (kept,) = fresh_cache.iterdir()
    old, new = temporary_beside(kept), temporary_beside(kept)
    folder = temporary_beside(fresh_cache / "builtin-0123")
    folder.mkdir()
    others = [fresh_cache / ".hidden", fresh_cache / ".x.0123", fresh_cache / "x.0123456789abcdef"]
    for path in (old, new, folder / "corpus.txt", *others):
        path.touch()
    for path in (old, folder / "corpus.txt", folder, kept, *others):
        os.utime(path, times=(0, 0))
    load(files)
    assert {*fresh_cache.iterdir()} == {kept, new, *others}
    growing = temporary_beside(fresh_cache / "builtin-0123")
    growing.mkdir()
    (growing / "corpus.txt").touch()
    os.utime(growing, times=(0, 0))  # a folder's own time says nothing of the files in it
    load(files)
    assert growing.exists()


def test_another_text_or_tokenizer_has_other_tokens(files: dict[str, Path]) -> None:
    first = load(files)
    files["corpus_path"].write_text("the dog")
    second = load(files)
    train_tokenizer([PANGRAMS[:500] * 3], vocab_size=80).save(str(files["tokenizer_path"]))
    third = load(files)
    assert len({corpus.tokens_path for corpus in (first, second, third)}) == 3
    assert third.tokens.tolist() == as_the_notebook_does(files)


def flipped_bits(data: bytes) -> bytes:
    draw, flipped = np.random.default_rng(0), bytearray(data)
    for place in draw.choice(len(data), 30, replace=False):
        flipped[place] ^= 1 << int(draw.integers(8))
    return bytes(flipped)


def swapped_tokens(data: bytes) -> bytes:
    """The same tokens as often as before: no count tells."""
    k = next(k for k in range(200, len(data), 2) if data[k : k + 2] != data[k + 2 : k + 4])
    return data[:k] + data[k + 2 : k + 4] + data[k : k + 2] + data[k + 4 :]


DAMAGES = [
    flipped_bits,
    swapped_tokens,
    lambda data: data[:-500] + bytes(500),  # a zeroed tail
    lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    lambda data: data + b"\0",
    lambda data: data[:-10],
    lambda data: data[:5],
    lambda data: b"",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokens_are_named_and_made_anew(
    files: dict[str, Path], damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = load(files).tokens_path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load(files).tokens.tolist() == as_the_notebook_does(files)
    assert capsys.readouterr().err == f"flannel-pl: {path} is damaged; it is made anew\n"
    assert path.read_bytes() == whole
    load(files)
    assert capsys.readouterr().err == ""


def test_tokens_of_another_text_are_made_anew(files: dict[str, Path], tmp_path: Path) -> None:
    """Whole files, exchanged for one another."""
    first = load(files).tokens_path
    other = {**files, "corpus_path": tmp_path / "other.txt"}
    other["corpus_path"].write_text(PANGRAMS[1000:] + PANGRAMS[:1000])
    second = load(other).tokens_path
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert load(files).tokens.tolist() == as_the_notebook_does(files)
    assert load(other).tokens.tolist() == as_the_notebook_does(other)


def test_tokens_that_an_earlier_version_kept_without_a_checksum_are_not_used(
    files: dict[str, Path], fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = (hashlib.sha256(path.read_bytes()).digest() for path in files.values())
    old = fresh_cache / f"tokens-{hashlib.sha256(b''.join(digests)).hexdigest()[:32]}.npy"
    fresh_cache.mkdir()
    np.save(old, np.array([1, 2, 3], np.uint16))
    assert load(files).tokens.tolist() == as_the_notebook_does(files)
    assert capsys.readouterr().err == ""


def test_tokens_damaged_after_they_were_loaded_are_not_used(files: dict[str, Path]) -> None:
    corpus = load(files)
    path = corpus.tokens_path
    with path.open("r+b") as file:  # as damage is: in place
        file.seek(300)
        file.write(b"\0\0\0\0")
    with pytest.raises(RunError, match=r"tokens-.*\.npy was damaged or removed while .* Start again"):
        _ = corpus.tokens
    path.unlink()
    with pytest.raises(RunError, match="damaged or removed"):
        _ = corpus.tokens
    assert load(files).tokens.tolist() == as_the_notebook_does(files)


def test_a_pipe_in_place_of_the_tokens_stops_nobody(files: dict[str, Path]) -> None:
    path = load(files).tokens_path
    path.unlink()
    os.mkfifo(path)
    assert load(files).tokens.tolist() == as_the_notebook_does(files)


def test_a_full_disk_under_the_cache_is_said(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"cannot write .*tokens-.*: No space left on device\. Free space"):
        load(files)


def test_more_than_65536_entries_take_int32(files: dict[str, Path]) -> None:
    vocab = {chr(0x4E00 + i % 20_000) + chr(0x100 + i // 20_000): i + 2 for i in range(65_535)}
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1, **vocab}, merges=[])).save(str(files["tokenizer_path"]))
    files["corpus_path"].write_text("abba")
    corpus = load_corpus(vocab_size=65_537, progress=False, **files)
    assert corpus.tokens.dtype == np.int32
    assert corpus.tokens.tolist() == [0, 1, 1, 0]


def test_unknown_characters_are_dropped_as_in_the_notebook_and_warned_of_once(files: dict[str, Path]) -> None:
    files["corpus_path"].write_text("the d\u00e9og \u0e01\u0e01\u0e01 no", encoding="utf-8")
    expected = (
        r"does not know 4 characters of .*corpus\.txt and drops them \(2 different ones, most often U\+0E01\)"
    )
    with pytest.warns(UserWarning, match=expected) as warned:
        corpus = load(files)
    assert len(warned) == 1
    assert corpus.tokens.tolist() == as_the_notebook_does(files)
    assert (
        corpus.tokens.tolist() == Tokenizer.from_file(str(files["tokenizer_path"])).encode("the dog no").ids
    )


def test_digests_are_of_the_files_and_of_the_counts(files: dict[str, Path], tmp_path: Path) -> None:
    corpus = load(files)
    assert corpus.digests["corpus"] == hashlib.sha256(PANGRAMS.encode()).hexdigest()
    assert corpus.digests["tokenizer"] == hashlib.sha256(files["tokenizer_path"].read_bytes()).hexdigest()
    as_stored = np.array(as_the_notebook_does(files), "<u2").tobytes()
    assert corpus.digests["tokens"] == hashlib.sha256(as_stored).hexdigest()
    corpus.masks.save(tmp_path / "masks")
    assert load({**files, "mask_path": tmp_path / "masks"}).digests == corpus.digests
    files["corpus_path"].write_text("the dog")
    assert load(files).digests["masks"] != corpus.digests["masks"]


def test_masks_of_another_text_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    TokenMasks.from_tokens(np.array([1, 2, 3]), 80).save(tmp_path / "masks")
    with pytest.raises(UserError, match=r"masks file .* does not fit: it calls \d+ tokens dead"):
        load({**files, "mask_path": tmp_path / "masks"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"corpus\.txt is empty"),
        (b" \n\t \n", r"corpus\.txt holds nothing but blanks"),
        (b"caf\xe9 au lait", r"corpus\.txt is not UTF-8: byte 0xe9 at offset 3\. .*iconv"),
        ("\u0e01\u0e02".encode(), r"knows no character of .*corpus\.txt.*flannel-pl prepare"),
    ],
)
def test_a_text_without_use_is_refused(
    files: dict[str, Path], fresh_cache: Path, content: bytes, message: str
) -> None:
    files["corpus_path"].write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(files)
    assert list(fresh_cache.iterdir()) == []


def test_a_missing_text_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the corpus .*none\.txt: No such file"):
        load({**files, "corpus_path": tmp_path / "none.txt"})
    with pytest.raises(UserError, match=r"cannot read the corpus .*: Is a directory"):
        load({**files, "corpus_path": tmp_path})


def test_a_tokenizer_with_gaps_in_its_ids_is_refused(files: dict[str, Path]) -> None:
    Tokenizer(models.BPE(vocab={"t": 0, "h": 7}, merges=[])).save(str(files["tokenizer_path"]))
    files["corpus_path"].write_text("th")
    with pytest.raises(UserError, match=r"gives id 7 .* has only 2 entries; expected ids without gaps"):
        load_corpus(vocab_size=2, progress=False, **files)


@pytest.mark.parametrize(
    ("given", "missing"),
    [("corpus_path", "tokenizer_path"), ("tokenizer_path", "corpus_path"), ("mask_path", "corpus_path")],
)
def test_half_of_the_files_is_refused(given: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.{missing} is missing\. .*flannel-pl prepare.*built-in"):
        load_corpus(vocab_size=80, **{given: tmp_path / "file"})  # type: ignore[arg-type]


def test_another_size_than_the_builtin_is_refused() -> None:
    expected = (
        r"has 10,000 vocabulary entries but model\.vocab_size is 5,000\. Run .* --vocab_size 5000 --out DIR"
    )
    with pytest.raises(UserError, match=expected):
        load_corpus(vocab_size=5000)


def test_a_cache_that_cannot_be_written_is_refused(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(files["corpus_path"] / "cache"))
    with pytest.raises(
        UserError, match=r"cannot write to the cache folder .*: Not a directory\. Set \$FLANNEL_PL"
    ):
        load(files)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FLANNEL_PL_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "flannel-pl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "flannel-pl"


@pytest.fixture
def small_builtin(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the built-in corpus a small one; the list grows by one each time its text is generated."""
    generated: list[int] = []

    def texts() -> tuple[str, str]:
        generated.append(1)
        return PANGRAMS, PANGRAMS[:2000]

    monkeypatch.setattr(datafiles, "builtin_texts", texts)
    monkeypatch.setattr(datafiles, "BUILTIN_VOCAB_SIZE", 80)
    monkeypatch.setattr(store, "BUILTIN_VOCAB_SIZE", 80)
    return generated


def test_the_builtin_corpus_is_made_once(
    small_builtin: list[int], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "tokenize", forbid)
    first, second = (load_corpus(vocab_size=80, progress=False) for _ in range(2))
    assert first.digests == second.digests
    assert small_builtin == [1]
    assert sorted(path.name for path in fresh_cache.iterdir()) == [
        first.corpus_path.parent.name,
        first.tokens_path.name,
    ]
    assert first.corpus_path.name == "flannel_model_corpus.txt"
    assert first.tokenizer_path.name == "flannel_tokenizer_chars.json"
    assert first.mask_path == first.corpus_path.parent / "live_dead_tokens.safetensors"


@pytest.mark.parametrize("name", [*datafiles.FILE_NAMES, "SHA256SUMS"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_builtin_corpus_is_made_anew(
    small_builtin: list[int], fresh_cache: Path, name: str, gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_corpus(vocab_size=80, progress=False)
    damaged = first.corpus_path.parent / name
    if gone:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-3])
    assert load_corpus(vocab_size=80, progress=False).digests == first.digests
    assert small_builtin == [1, 1]
    assert len(list(fresh_cache.iterdir())) == 2
    assert capsys.readouterr().err == f"flannel-pl: {damaged.parent} is damaged; it is made anew\n"


def test_who_makes_the_builtin_corpus_last_uses_what_the_first_made(
    small_builtin: list[int], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winners: list[int] = []

    def overtaken() -> tuple[str, str]:
        small_builtin.append(1)
        if len(small_builtin) == 1:
            winner = load_corpus(vocab_size=80, progress=False)
            winners.append(winner.corpus_path.parent.stat().st_ino)
        return PANGRAMS, PANGRAMS[:2000]

    monkeypatch.setattr(datafiles, "builtin_texts", overtaken)
    loser = load_corpus(vocab_size=80, progress=False)
    assert small_builtin == [1, 1]
    assert [loser.corpus_path.parent.stat().st_ino] == winners
    assert len(list(fresh_cache.iterdir())) == 2


def test_processes_that_start_at_once_get_the_same_corpus(files: dict[str, Path], fresh_cache: Path) -> None:
    code = """if True:
        from flannel_pl.corpus import datafiles, store
        from tests.corpus.corpus_samples import PANGRAMS
        datafiles.builtin_texts = lambda: (PANGRAMS, PANGRAMS[:2000])
        datafiles.BUILTIN_VOCAB_SIZE = store.BUILTIN_VOCAB_SIZE = 80
        for _ in range(20):
            print(store.load_corpus(vocab_size=80, progress=False).digests["tokenizer"])
    """
    with ThreadPoolExecutor(3) as pool:
        printed = "\n".join(pool.map(lambda _: run_python(code), range(3)))
    assert len(printed.split()) == 60
    assert set(printed.split()) == {load(files).digests["tokenizer"]}
    assert len(list(fresh_cache.glob("*builtin*"))) == 1


def test_a_failed_preparation_leaves_nothing(
    small_builtin: list[int], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TokenMasks, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(vocab_size=80, progress=False)
    assert list(fresh_cache.iterdir()) == []


def test_off_a_terminal_progress_is_one_line(
    small_builtin: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    load_corpus(vocab_size=80)
    load_corpus(vocab_size=80)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "preparing the built-in corpus (once) ...\n")


def test_the_room_needs_no_torch() -> None:
    code = "import sys, flannel_pl.corpus.prepare; print({'torch', 'lightning'} & set(sys.modules))"
    assert run_python(code) == "set()"
