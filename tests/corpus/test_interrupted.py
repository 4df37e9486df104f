"""A preparation that takes long: it says so, and ends at once on a signal, with nothing half-written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from flannel_pl.corpus import progress
from flannel_pl.corpus.prepare import prepare
from tests.corpus.corpus_samples import PANGRAMS


def one_word(length: int) -> str:
    return "".join(random.Random(0).choices("ACGT", k=length))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def ended_by(number: int, words: list[str], *, cache: Path, begun: str) -> tuple[int, list[str], float]:
    """Sends a signal to a process of Python that has said that it has begun.

    Returns:
        Its exit code, the lines that it says after the signal, and the seconds that it takes.
    """
    env = {**os.environ, "FLANNEL_PL_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *words]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while begun not in next(process.stderr):
            pass
        time.sleep(0.5)  # by now it is inside the library
        process.send_signal(number)
        began_s = time.monotonic()
        rest = process.stderr.read().splitlines()
        return process.wait(timeout=30), rest, time.monotonic() - began_s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_prepare_while_the_tokenizer_is_trained(
    tmp_path: Path, cache: Path, number: signal.Signals
) -> None:
    text = tmp_path / "genome.txt"
    text.write_text(one_word(300_000))
    words = ["-m", "flannel_pl", "prepare", "--tokenizer_text", str(text), "--model_text", str(text)]
    words += ["--vocab_size", "100", "--out", str(tmp_path / "out")]
    code, lines, seconds = ended_by(number, words, cache=cache, begun="takes four times as long")
    assert code == 128 + number
    assert len(lines) == 1
    assert lines[0].startswith(f"stopped by {number.name}; nothing is lost, go on with: flannel-pl prepare")
    assert seconds < 5  # training takes more than a minute
    assert not (tmp_path / "out").exists()
    assert list(cache.glob("*")) == []


@pytest.fixture
def long_text(tmp_path: Path) -> dict[str, Path]:
    """A text, and a tokenizer that needs some seconds for it."""
    vocab = {"a": 0, **{chr(0x4E00 + i): i + 1 for i in range(99)}}
    paths = {"corpus_path": tmp_path / "corpus.txt", "tokenizer_path": tmp_path / "tokenizer.json"}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(paths["tokenizer_path"]))
    paths["corpus_path"].write_text("a" * 30_000_000)
    return paths


def test_a_signal_ends_the_tokenizing_of_a_corpus(long_text: dict[str, Path], cache: Path) -> None:
    names = {name: str(path) for name, path in long_text.items()}
    code = f"""if True:
        import sys
        from flannel_pl.corpus.store import load_corpus
        from flannel_pl.errors import Interrupted
        try:
            load_corpus(vocab_size=100, **{names})
        except Interrupted as interruption:
            sys.exit(128 + interruption.signal_number)
    """
    code_number, lines, seconds = ended_by(signal.SIGTERM, ["-c", code], cache=cache, begun="(once) ...")
    assert (code_number, lines) == (128 + signal.SIGTERM, [])
    assert seconds < 3
    assert list(cache.glob("*")) == []


@pytest.mark.slow
def test_a_signal_ends_fit_while_the_corpus_is_tokenized(
    long_text: dict[str, Path], tmp_path: Path, cache: Path
) -> None:
    words = ["-m", "flannel_pl", "fit", "--trainer.max_steps", "1", "--model.vocab_size", "100"]
    words += [f"--data.{name}={path}" for name, path in long_text.items()]
    words += ["--experiment.output_dir", str(tmp_path), "--experiment.name", "one"]
    code, lines, _ = ended_by(signal.SIGTERM, words, cache=cache, begun="(once) ...")
    assert code == 128 + signal.SIGTERM
    assert len(lines) == 1
    assert lines[0].startswith("stopped by SIGTERM; nothing is lost, go on with: flannel-pl fit")
    assert list(cache.glob("*")) == []
    assert not (tmp_path / "one").exists()


def test_long_words_are_named_before_and_progress_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "STILL_EVERY_S", 0.05)
    text, genome = tmp_path / "model.txt", tmp_path / "genome.txt"
    text.write_text(PANGRAMS)
    genome.write_text(f"{PANGRAMS}\n{'a.' * 30_000}\n>seq {one_word(25_000)}\n")
    prepare(tokenizer_text=[text, genome], model_text=text, out=tmp_path / "out", vocab_size=80)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "preparing the data files ..."
    (warning,) = (line for line in lines if "four times" in line)
    assert f"a word of 25,000 characters without a blank, '{one_word(25_000)[:12]}'..." in warning
    assert "still training the tokenizer, 0 s so far" in "\n".join(lines[lines.index(warning) :])
    prepare(tokenizer_text=[text], model_text=text, out=tmp_path / "short", vocab_size=80)
    assert "four times" not in capsys.readouterr().err


def test_files_that_have_their_names_already_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNEL_PL_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "model.txt"
    text.write_text(PANGRAMS)
    replace, calls = Path.replace, list[Path]()

    def replace_one(self: Path, target: Path) -> Path:
        calls.append(target)
        if target.name == "flannel_tokenizer_chars.json":
            os.kill(os.getpid(), signal.SIGTERM)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_one)
    with pytest.raises(Exception, match="SIGTERM"):
        prepare(tokenizer_text=[text], model_text=text, out=tmp_path / "out", vocab_size=80)
    assert [path.name for path in calls][-1] == "flannel_tokenizer_chars.json"
    assert not (tmp_path / "out").exists()
