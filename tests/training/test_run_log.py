"""A run that is trained in the process of its command has a log like every other."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.errors import Interrupted, RunError
from flannel_pl.terminal import copied_to, plain_text
from flannel_pl.training.run_log import logged
from tests.conftest import SmallData


def words(data: SmallData, folder: Path, *more: str) -> list[str]:
    settings = [
        "--trainer.max_steps",
        "3",
        "--experiment.output_dir",
        str(folder),
        "--experiment.name",
        "one",
    ]
    return ["fit", *data.arguments, *settings, "--launch.threads_per_run", "1", *more]


def test_what_is_seen_is_in_the_log_of_every_attempt(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        print("just before")
        raise ZeroDivisionError("by hand")

    with monkeypatch.context() as patch:
        patch.setattr(StepRecorder, "on_train_batch_end", broken)
        assert main(words(small_data, tmp_path)) == 1
    log = tmp_path / "one" / "run_0" / "log.txt"
    text = log.read_text()
    assert "just before\n" in text
    assert "Traceback (most recent call last)" in text
    assert text.endswith("flannel-pl: error: ZeroDivisionError: by hand\n")
    assert main(words(small_data, tmp_path)) == 0
    assert log.read_text().startswith(text)
    assert "Trainable params" in log.read_text()[len(text) :]
    seen = capsys.readouterr().out
    assert "Trainable params" not in seen
    assert "just before" not in seen
    assert "run 0: done on cpu, retry 1, 3/3 steps" in seen  # as of several runs


@pytest.mark.parametrize("streams", [pytest.param("apart", marks=pytest.mark.slow), "the log itself"])
def test_every_line_is_there_once(small_data: SmallData, tmp_path: Path, streams: str) -> None:
    """As a Slurm task prints, whose output is the log."""
    several = words(small_data, tmp_path, "--experiment.seeds", "1..2", "--experiment.run")
    assert main([*several, "0"]) == 0
    log = tmp_path / "one" / "run_1" / "log.txt"
    log.parent.mkdir()
    with (log if streams == "the log itself" else tmp_path / "seen").open("a") as output:
        command = [sys.executable, "-m", "flannel_pl", *several, "1"]
        subprocess.run(command, stdout=output, stderr=output, timeout=120, check=True)
    for line in ("`Trainer.fit` stopped", "GPU available", "Trainable params"):
        assert log.read_text().count(line) == 1
        if streams == "apart":
            assert (tmp_path / "seen").read_text().count(line) == 1


@pytest.mark.parametrize(
    ("error", "last"),
    [(RunError("disk"), "flannel-pl: error: disk\n"), (Interrupted(15), "stopped by SIGTERM\n")],
)
def test_the_last_line_says_why(tmp_path: Path, error: Exception, last: str) -> None:
    with pytest.raises(type(error)), logged(tmp_path / "log.txt"):
        raise error
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(last)
    assert ("Traceback" in text) == isinstance(error, RunError)


def test_what_is_printed_and_logged_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("flannel test")
    with plain_text():
        handler = logging.StreamHandler()  # as Lightning's, made when it was imported
        logger.addHandler(handler)
        with (tmp_path / "log").open("wb", buffering=0) as log, copied_to(log, stdout=True, stderr=True):
            print("one")
            sys.stdout.write("\x1b]0;title\n")  # which no foreign text may do
            print("warned", file=sys.stderr)
            logger.warning("told")
        logger.warning("later")
        logger.removeHandler(handler)
    assert (tmp_path / "log").read_text() == "one\n\\x1b]0;title\nwarned\ntold\n"
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("one\n\\x1b]0;title\n", "warned\ntold\nlater\n")


def test_what_only_draws_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as log, copied_to(log, stdout=True, stderr=False):
        for text in ("\rEpoch 0: 10%", "\x1b[2K\x1b[1A frame", "\x1b[1;32mgreen\x1b[0m\n", "plain\r\n"):
            sys.stdout.write(text)
        print("not copied", file=sys.stderr)
    assert (tmp_path / "log").read_bytes() == b"green\nplain\r\n"
    assert "Epoch 0: 10%" in capsys.readouterr().out


def test_a_log_that_cannot_be_written_costs_only_the_copy(capsys: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with full.open("wb", buffering=0) as log, copied_to(log, stdout=True, stderr=True):
        print("shown")
    assert capsys.readouterr().out == "shown\n"
