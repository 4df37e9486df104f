import shlex
from pathlib import Path

import pytest

from flannel_pl.launch.standing import Outcome
from flannel_pl.launch.summary import summarize
from tests.launch.status_samples import finish, make_experiment, write_journal


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [80, 130])
def test_a_finished_experiment(
    weird_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    experiment = make_experiment(weird_tmp_path / "exp", 2, swept=[{"model.n_layer": 2}])
    finish(experiment, 0)
    finish(experiment, 1, attempt=3, first_bad_step=17, loss=float("nan"))
    runs = experiment.runs
    summarize(
        experiment,
        [Outcome(runs[0], "cpu", 1, 12.34, None), Outcome(runs[1], "cpu", 3, 5.0, None)],
        command=["fit"],
    )
    header, *rows = capsys.readouterr().out.splitlines()
    assert words(header) == "run seed n_layer device rows last loss seconds state retries"
    assert words(rows[0]) == "0 42 2 cpu 1001/1001 4.1250 12.3 done 0"
    assert words(rows[1]) == "1 43 2 cpu 1001/1001 nan 5.0 done 2"
    assert rows[2] == "run 1: loss not finite from step 17 on; recorded as it is"
    assert len(rows) == 3


def test_failures_have_their_own_table_logs_and_the_command_to_go_on_with(
    weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = make_experiment(weird_tmp_path / "exp", 3)
    finish(experiment, 0)
    write_journal(experiment, 1, state="failed")
    experiment.paths.run(2).folder.mkdir()
    experiment.paths.run(2).journal.write_bytes(b"?")
    runs, log = experiment.runs, experiment.paths.run(1).log
    cause = "exit code 1: [red]OSError: " + "no space left, " * 10 + "alas"
    outcomes = [
        Outcome(runs[0], "cuda:0", 1, 1.0, None),
        Outcome(runs[1], "cuda:1", 3, 1.0, cause),
        Outcome(runs[2], "cuda:0", 1, None, "killed by SIGKILL"),
    ]
    summarize(experiment, outcomes, command=["fit", "--config", "a b.yaml", "--x", "\u0e20"])
    output = capsys.readouterr().out
    assert [words(line) for line in output.splitlines()[1:4]] == [
        "0 42 cuda:0 1001/1001 4.1250 1.0 done 0",
        "1 43 cuda:1 301/1001 4.1250 1.0 failed 2",
        "2 44 cuda:0 0/1001 failed 0",
    ]
    assert "failed: 2 of 3 runs" in output
    assert words("run seed device cause") in words(output)
    assert f"1 43 cuda:1 {words(cause)} 2 44 cuda:0 killed by SIGKILL log of run 1:" in words(output)
    assert "story" not in output
    assert f"\nlog of run 1: {shlex.quote(str(log))}\n" in output
    assert f"\nlog of run 2: {shlex.quote(str(experiment.paths.run(2).log))}\n" in output
    assert output.splitlines()[-1] == "go on with: flannel-pl fit --config 'a b.yaml' --x '\u0e20'"
    summarize(experiment, outcomes, command=["fit", "--config", "c\udcff.yaml"])
    assert capsys.readouterr().out.splitlines()[-1] == "go on with: flannel-pl fit --config 'c\\udcff.yaml'"
