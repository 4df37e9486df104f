"""Fixtures of all rooms: small data to train on, awkward paths, and a look at what a test leaves behind."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flannel_pl.__main__ import main
from flannel_pl.corpus.prepare import prepare

SMALL_VOCAB_SIZE = 100

# A terminal's settings, which some CI services make, change what is printed.
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)

# Under nohup, or in the background of a script, tests would start processes that ignore what they send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(_number, signal.SIG_DFL)


@dataclass(frozen=True)
class SmallData:
    """The three data files of a corpus of a few thousand tokens."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "flannel_model_corpus.txt"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "flannel_tokenizer_chars.json"

    @property
    def masks(self) -> Path:
        return self.folder / "live_dead_tokens.safetensors"

    @property
    def arguments(self) -> list[str]:
        """Command line arguments for a small model on this corpus."""
        return [
            *("--data.corpus_path", str(self.corpus)),
            *("--data.tokenizer_path", str(self.tokenizer)),
            *("--data.mask_path", str(self.masks)),
            *("--model.vocab_size", str(SMALL_VOCAB_SIZE)),
            *("--model.hidden_dim", "16", "--model.max_seq_len", "16", "--data.batch_size", "4"),
            *("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1.0"),
            *("--trainer.accelerator", "cpu"),
        ]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own, unless one is given: the built-in corpus is prepared once per session."""
    given = os.environ.get("FLANNEL_PL_CACHE")
    folder = Path(given) if given else tmp_path_factory.mktemp("cache")
    os.environ["FLANNEL_PL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    folder = tmp_path_factory.mktemp("small data")
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghij"))
    words = ["".join(draw.choice(letters, size=draw.integers(2, 6))) for _ in range(300)]
    text = " ".join(words[int(i)] for i in draw.zipf(1.4, 4000) % 300)
    (folder / "model.txt").write_text(text, encoding="utf-8")
    (folder / "tokenizer.txt").write_text(text + " XYZ XYZ XYZW XYZW", encoding="utf-8")
    prepare(
        tokenizer_text=[folder / "tokenizer.txt"],
        model_text=folder / "model.txt",
        out=folder,
        vocab_size=SMALL_VOCAB_SIZE,
    )
    return SmallData(folder)


@pytest.fixture(scope="session")
def example_runs(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what examples read: runs/quickstart, runs/flannel3 and its first run, runs/flannel1."""
    folder = tmp_path_factory.mktemp("examples")
    runs = folder / "runs"
    settings = ["--experiment.seeds", "42..43", "--trainer.max_steps", "20"]
    place = ["--experiment.name", "quickstart", "--experiment.output_dir", str(runs)]
    assert main(["fit", *small_data.arguments, *settings, *place]) == 0
    shutil.copytree(runs / "quickstart", runs / "flannel3")
    shutil.copytree(runs / "quickstart" / "run_0", runs / "flannel1")
    return folder


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has what breaks careless code."""
    folder = tmp_path / "a 'quoted' \"name\" \u0e20 with\nnewline"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Runs each test in an empty folder and fails it for stray files, threads or signal handlers."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    threads = set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    stray = sorted(path.name for path in folder.iterdir())
    assert not stray, f"left in the working folder: {stray}"
    writers = [thread.name for thread in set(threading.enumerate()) - threads if "flannel" in thread.name]
    assert not writers, f"left running: {writers}"
    for number, handler in handlers.items():
        assert signal.getsignal(number) is handler, f"handler of {signal.Signals(number).name} was changed"
