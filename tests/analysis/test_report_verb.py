"""The verb report as a user meets it: words, exit codes, a real terminal."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from tests.analysis.samples import save_recording, walk
from tests.launch.terminal import Terminal


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return save_recording(tmp_path / "trial.safetensors", [walk(1), walk(2)], dead=[0, 1, 4])


@pytest.mark.usefixtures("one_picture")
def test_says_where_the_report_is_and_what_was_read(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trial)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"report: {trial.parent / 'trial_report' / 'index.html'}"
    assert second.startswith("2.46 KiB read and drawn in ")
    assert main(["report", str(trial), "--tokens", "live"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("no embeddings had to be read; ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: paths; see flannel-pl report --help"),
        (["no_such"], "There is no no_such; expected a recording (.safetensors), an index, or a folder"),
        (["--tokens", "dea", "x"], "Expected a typing.Literal['dead', 'live', 'all']. Got value: dea"),
    ],
)
def test_wrong_use(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_broken_file_is_named_and_leaves_no_half_report(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.write_bytes(trial.read_bytes()[:200])
    assert main(["report", str(trial)]) == 1
    assert str(trial) in capsys.readouterr().err
    assert not (trial.parent / "trial_report").exists()


def test_a_terminal_shows_how_far_it_is_and_then_only_the_result(trial: Path) -> None:
    command = [sys.executable, "-m", "flannel_pl", "report", str(trial)]
    with Terminal(command, columns=80, lines=24) as terminal:
        terminal.wait_for("Drawing")
        assert terminal.end() == 0
        assert "%" in terminal.output
        shown = [line for line in terminal.screen() if line.strip()]
    assert shown[0].startswith("report: ")
    assert not any("Drawing" in line or "Measuring" in line for line in shown)


def test_help_is_quick_and_needs_no_matplotlib() -> None:
    code = (
        "import sys; from flannel_pl.__main__ import main\n"
        "try: main(['report', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    times = []
    for _ in range(5):
        before_s = children_s()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(children_s() - before_s)
        assert result.returncode == 0
        assert "PATH [PATH ...]" in result.stdout
    assert min(times) < 0.5


def children_s() -> float:
    """Seconds of computing by the processes waited for: of a busy machine they do not tell."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_reader_that_has_gone_is_no_traceback(trial: Path) -> None:
    command = f"'{sys.executable}' -m flannel_pl info '{trial}' | true"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
