import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.launch import progress as progress_module
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.status import collect_status
from flannel_pl.recording.writing.journal import SLOT_BYTES
from tests.launch.status_samples import finish, make_experiment, write_journal
from tests.launch.terminal import Terminal


@pytest.fixture
def at_any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every `update` look, however soon after the last one."""
    monkeypatch.setattr(progress_module, "REFRESH_S", 0.0)
    monkeypatch.setattr(progress_module, "COST", math.inf)


class Printed:
    """What was printed since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def lines(self) -> list[str]:
        return self._capsys.readouterr().out.splitlines()


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


@pytest.mark.usefixtures("at_any_rate")
def test_plain_lines_for_start_tenths_retry_and_end(weird_tmp_path: Path, printed: Printed) -> None:
    experiment = make_experiment(weird_tmp_path / "exp", 2)
    with Progress(experiment, experiment.runs) as progress:
        progress.update()
        assert printed.lines() == []
        write_journal(experiment, 0, rows_written=1, loss=None)
        progress.update()
        assert printed.lines() == ["run 0: running on cuda:0, 0/1000 steps"]
        write_journal(experiment, 0, rows_written=100)
        progress.update()
        assert printed.lines() == []
        write_journal(experiment, 0, rows_written=101)
        progress.update()
        progress.update()
        assert printed.lines() == ["run 0: running on cuda:0, 100/1000 steps, loss 4.1250, 1.67 steps/s"]
        write_journal(experiment, 0, rows_written=201, live={"dead/speed": 0.25})
        progress.update()
        (line,) = printed.lines()
        assert line.endswith("200/1000 steps, loss 4.1250, 3.33 steps/s, dead/speed 0.25")
        write_journal(experiment, 0, state="failed", rows_written=251, message="OSError")
        progress.update()
        assert printed.lines() == []  # it is for the launcher to say whether that was all
        progress.retry(experiment.runs[0], "OSError", device="cpu")
        progress.update()
        retried = " ".join(printed.lines())
        assert "run 0 (seed 42) on cpu: OSError; starting it again. Its log: " in retried
        assert "run_0/log.txt" in retried
        write_journal(experiment, 0, attempt=2, rows_written=101)
        progress.update()
        assert printed.lines() == [
            "run 0: running on cuda:0, retry 1, 100/1000 steps, loss 4.1250, 1.67 steps/s"
        ]
        # Killed, so that its journal never said that it failed.
        write_journal(experiment, 0, attempt=3, rows_written=101)
        progress.update()
        assert printed.lines() == [
            "run 0: running on cuda:0, retry 2, 100/1000 steps, loss 4.1250, 1.67 steps/s"
        ]
        finish(experiment, 0, attempt=3)
        progress.ended(experiment.runs[0], None)
        progress.update()
        ended, overall = printed.lines()
        assert ended.startswith("run 0: done on cuda:0, retry 2, 1000/1000 steps")
        assert overall.startswith("1 of 2 runs done, 1 waiting; 1000 steps left")
        write_journal(experiment, 1)
        progress.ended(experiment.runs[1], "killed by SIGKILL (by hand)")
    lines = printed.lines()
    assert lines[0] == "run 1 failed: killed by SIGKILL (by hand)"
    assert lines[1].startswith("1 of 2 runs done, 1 failed; ")
    assert len(lines) == 2


@pytest.mark.usefixtures("at_any_rate")
def test_a_killed_run_waits_until_its_journal_is_written_again(tmp_path: Path, printed: Printed) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    with Progress(experiment, experiment.runs) as progress:
        write_journal(experiment, 0)
        progress.update()
        progress.retry(experiment.runs[0], "killed by SIGKILL", device="cpu")
        printed.lines()
        finish(experiment, 1)
        progress.update()
        assert printed.lines()[-1].startswith("1 of 2 runs done, 1 waiting; 1000 steps left; ")
        write_journal(experiment, 0, attempt=2, rows_written=11)
        progress.update()
        assert printed.lines()[0].startswith("run 0: running on cuda:0, retry 1, 10/1000 steps")


@pytest.mark.usefixtures("at_any_rate")
def test_a_loss_that_is_not_finite_is_told_once(tmp_path: Path, printed: Printed) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    with Progress(experiment, experiment.runs) as progress:
        write_journal(experiment, 0, rows_written=21, loss=math.nan, first_bad_step=17)
        for _ in range(3):
            progress.update()
    lines = printed.lines()
    assert [line for line in lines if "not finite" in line] == [
        "run 0: loss not finite from step 17 on; recorded as it is"
    ]
    assert "loss nan" in lines[0]


@pytest.mark.usefixtures("at_any_rate")
@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_a_journal_of_an_earlier_launch_says_nothing_until_it_changes(
    tmp_path: Path, printed: Printed, state: Any
) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    finish(experiment, 0)
    write_journal(experiment, 1, state=state, message="of yesterday")
    with Progress(experiment, experiment.runs[1:]) as progress:
        progress.update()
        first, overall = printed.lines()
        assert first.startswith("run 0: done")
        assert overall.startswith("1 of 2 runs done, 1 waiting; 1000 steps left")
        write_journal(experiment, 1, attempt=1, rows_written=302)
        progress.update()
        assert printed.lines() == ["run 1: running on cuda:1, 301/1000 steps, loss 4.1250, 5.02 steps/s"]


@pytest.mark.usefixtures("at_any_rate")
def test_a_damaged_journal_stops_nothing(tmp_path: Path, printed: Printed) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    with Progress(experiment, experiment.runs) as progress:
        write_journal(experiment, 0)
        progress.update()
        experiment.paths.run(0).journal.write_bytes(b"?" * 2 * SLOT_BYTES)
        progress.update()
        assert "run 0: its journal cannot be read" in printed.lines()[-1]


def test_only_the_selected_run_is_shown(tmp_path: Path, printed: Printed) -> None:
    experiment = make_experiment(tmp_path / "exp", 3, run=1)
    with Progress(experiment, experiment.selected):
        finish(experiment, 1)
    assert printed.lines()[-1].startswith("1 of 1 runs done")


def test_it_looks_at_most_twice_a_second_and_less_often_if_looking_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    clock_s, looks, took_s = 100.0, 0, 0.0

    def look(*arguments: Any) -> Any:
        nonlocal looks, clock_s
        looks, clock_s = looks + 1, clock_s + took_s
        return collect_status(*arguments)

    def looks_in_ten_seconds() -> int:
        nonlocal clock_s, looks
        looks = 0
        for _ in range(50):
            clock_s += 0.2
            progress.update()
        return looks

    monkeypatch.setattr(progress_module, "collect_status", look)
    monkeypatch.setattr(time, "monotonic", lambda: clock_s)
    with Progress(experiment, experiment.runs) as progress:
        assert 15 <= looks_in_ten_seconds() <= 20
        took_s = 0.1
        assert 4 <= looks_in_ten_seconds() <= 6  # each takes 0.1 s of 2 s


LAUNCHER = """
import sys, time
from pathlib import Path
from flannel_pl.errors import Interrupted
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.status import collect_status
from tests.launch.status_samples import finish, make_experiment, write_journal
experiment = make_experiment(Path(sys.argv[1]), 2)
with Progress(experiment, experiment.runs) as progress:
    write_journal(experiment, 0)
    progress.update()
    progress.note("a note, printed above")
    time.sleep(0.6)
    finish(experiment, 0)
    progress.update()
    if sys.argv[2] == "stopped":
        raise Interrupted(15)
print("the summary")
"""


@pytest.mark.parametrize("columns", [80, 130])
def test_on_a_terminal_a_live_table_that_makes_room_for_the_summary(tmp_path: Path, columns: int) -> None:
    screen = run_launcher(tmp_path / "exp", "finished", columns=columns)
    assert screen == ["a note, printed above", "the summary"]


def test_on_a_terminal_the_table_stays_if_the_launch_is_interrupted(tmp_path: Path) -> None:
    screen = run_launcher(tmp_path / "exp", "stopped", columns=100)
    assert screen[0] == "a note, printed above"
    header = "run seed device step steps/s loss MB state retries"
    assert screen[1].split() == header.split()
    assert "1000/1000" in screen[2]
    assert screen[3].split() == ["1", "43", "0/1000", "waiting", "0"]
    assert screen[5].startswith("1 of 2 runs done, 1 waiting; 1000 steps left")
    assert "Traceback" in screen[6]


def run_launcher(folder: Path, ending: str, *, columns: int) -> list[str]:
    """Returns the lines that are on the terminal at the end, without blanks at their ends."""
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r})\n{LAUNCHER}"
    command = [sys.executable, "-c", code, str(folder), ending]
    with Terminal(command, columns=columns, lines=24) as terminal:
        terminal.wait_for("300/1000")
        assert terminal.end() == (ending == "stopped")
    assert "\x1b[?25h" in terminal.output  # the cursor is back
    return terminal.screen()
