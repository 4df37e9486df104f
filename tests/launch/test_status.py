import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash
from rich.console import Console

from flannel_pl.errors import RunError, UserError
from flannel_pl.launch.display import duration, overall, status_table
from flannel_pl.launch.standing import ExperimentStatus
from flannel_pl.launch.status import SILENT_S, read_status, status_verb
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.recording.writing.journal import SLOT_BYTES, Journal
from flannel_pl.terminal import printable
from tests.launch.status_samples import finish, make_experiment, write_journal
from tests.launch.terminal import Terminal
from tests.recording import gathering_samples


def states(folder: Path) -> list[str]:
    return [run.state for run in read_status(folder).runs]


def words(text: str) -> str:
    """Returns a text without the blanks that align it."""
    return " ".join(text.split())


def table_text(status: ExperimentStatus, width: int) -> str:
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with contextlib.closing(console.file):
        console.print(status_table(status, width=width))
    return console.export_text()


def test_every_state_is_read_from_journal_and_files(weird_tmp_path: Path) -> None:
    experiment = make_experiment(weird_tmp_path / "exp", 9)
    now_s = time.time()
    finish(experiment, 0)
    write_journal(experiment, 1)
    write_journal(experiment, 2, state="stopped", message="SIGTERM")
    write_journal(experiment, 3, state="failed", message="OSError", attempt=3)
    write_journal(experiment, 4, updated_s=now_s - SILENT_S - 5)
    write_journal(experiment, 5, updated_s=now_s - SILENT_S + 5)
    write_journal(experiment, 6, state="done")  # but somebody deleted the recording
    write_journal(experiment, 7, state="waiting", rows_written=0)
    status = read_status(weird_tmp_path / "exp")
    expected = ["done", "running", "stopped", "failed", "silent", "running", "waiting", "waiting", "waiting"]
    assert [run.state for run in status.runs] == expected
    assert [run.seed for run in status.runs] == list(range(42, 51))
    running = status.runs[1]
    assert (running.step, running.max_steps, running.device, running.host) == (300, 1000, "cuda:1", "node7")
    assert running.steps_per_s == pytest.approx(300 / 60, rel=0.01)
    assert (running.loss, running.bytes_written, running.retries) == (4.125, 301_000_000, 0)
    assert (status.runs[3].retries, status.runs[3].message) == (2, "OSError")
    assert status.runs[0].step == 1000
    assert status.runs[0].bytes_written == 2_000_000  # what the file has
    assert (status.runs[6].step, status.runs[6].message) == (0, "it was done, but its recording is gone")
    assert not status.gathered


@pytest.mark.parametrize(
    "changes", [{"state": "failed"}, {"state": "running", "updated_s": 0.0}, {"state": "stopped"}]
)
def test_the_recording_is_the_truth_whatever_the_journal_says(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    finish(experiment, 0, **changes)
    run = read_status(tmp_path / "exp").runs[0]
    assert (run.state, run.step, run.message) == ("done", 1000, "")
    experiment.paths.run(0).journal.write_bytes(b"?" * 2 * SLOT_BYTES)
    assert read_status(tmp_path / "exp").runs[0].state == "done"
    experiment.paths.run(0).journal.unlink()
    assert read_status(tmp_path / "exp").runs[0].state == "done"
    assert read_status(tmp_path / "exp").ended


def test_a_run_whose_shard_was_dropped_is_done_if_it_is_gathered(tmp_path: Path) -> None:
    paths = gathering_samples.experiment(tmp_path / "exp", keep_shards=False)
    gathering_samples.hide(paths, 0)
    gatherer = Gatherer(paths.folder)
    gatherer.add(1)
    assert states(paths.folder) == ["waiting", "done", "done"]
    assert not paths.run(1).recording.exists()
    shutil.rmtree(paths.run(2).folder)
    paths.run(1).journal.unlink()
    status = read_status(paths.folder)
    assert [run.state for run in status.runs] == ["waiting", "done", "waiting"]
    assert (status.runs[1].step, status.runs[1].num_rows, status.gathered) == (6, 7, False)
    gathering_samples.bring_back(paths, 0)
    gathering_samples.make_run(paths, 2)
    gatherer.finish()
    status = read_status(paths.folder)
    assert [run.state for run in status.runs] == ["done"] * 3
    assert status.gathered
    paths.gathered.write_bytes(b"damaged")
    status = read_status(paths.folder)
    assert [run.state for run in status.runs] == ["waiting"] * 3
    assert status.runs[0].message == "it was done, but its recording is gone"


def test_damaged_notes_of_the_growing_file_are_a_state_not_an_exception(tmp_path: Path) -> None:
    paths = gathering_samples.experiment(tmp_path / "exp", keep_shards=False)
    gathering_samples.hide(paths, 0)
    Gatherer(paths.folder).add(1)
    text = b'{"of": "a later version"}'
    for content in (b"", b"?" * 300, xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"):
        paths.growing_notes.write_bytes(content)
        status = read_status(paths.folder)
        assert [run.state for run in status.runs] == ["waiting", "unknown", "done"]
        assert status.runs[1].message.startswith(f"it was done; where it is now: {paths.growing_notes} is ")


_GATHER_CODE = r"""
import sys
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.gathering.gatherer import Gatherer
for folder in sys.argv[1:]:
    gatherer = Gatherer(folder)
    for run in range(3):
        gatherer.add(run)
    gatherer.finish()
"""


@pytest.mark.parametrize("spoil", [lambda journal: None, Path.unlink])
def test_a_finished_run_is_done_at_every_moment_of_gathering(tmp_path: Path, spoil: Any) -> None:
    folders = [tmp_path / str(number) / "exp" for number in range(40)]
    template = gathering_samples.experiment(tmp_path / "template" / "exp", keep_shards=False)
    for run in range(3):
        spoil(template.run(run).journal)
    for folder in folders:
        shutil.copytree(template.folder, folder)
    looks = 0
    command = [sys.executable, "-c", _GATHER_CODE, *map(str, folders)]
    with subprocess.Popen(command) as gathering:
        for folder in folders:
            gathered = False
            while not gathered:
                assert gathering.poll() in (None, 0)
                gathered = (folder / "exp.safetensors").exists()
                assert states(folder) == ["done"] * 3
                looks += 1
    assert gathering.returncode == 0
    assert looks > 2 * len(folders)


def damaged(path: Path) -> None:
    path.write_bytes(b"?" * 2 * SLOT_BYTES)


def folder_instead(path: Path) -> None:
    path.mkdir()


def of_a_later_version(path: Path) -> None:
    body = f"{1:020d} {json.dumps({'loss': None, 'unheard_of': 1})}".encode().ljust(SLOT_BYTES - 18)
    slot = body + b" " + xxhash.xxh3_64_hexdigest(body).encode() + b"\n"
    path.write_bytes(slot.ljust(2 * SLOT_BYTES))


@pytest.mark.parametrize("spoil", [damaged, folder_instead, of_a_later_version])
def test_a_journal_that_cannot_be_read_is_a_state_not_an_exception(tmp_path: Path, spoil: Any) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    experiment.paths.run(1).folder.mkdir()
    spoil(experiment.paths.run(1).journal)
    status = read_status(tmp_path / "exp")
    assert [run.state for run in status.runs] == ["waiting", "unknown"]
    assert status.runs[1].message.startswith("its journal cannot be read: ")
    assert "run 1: its journal cannot be read" in table_text(status, 80)


def test_steps_of_swept_and_sparse_recordings(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2, swept=[{"trainer.max_steps": 60}, {}])
    sparse = experiment.config.but({"recorder.every_n_steps": 7})
    experiment = dataclasses.replace(experiment, config=sparse)
    experiment.paths.record.write_text(json.dumps(experiment.record({}, settled={})))
    now_s = time.time()
    write_journal(experiment, 0, rows_written=4, started_s=now_s - 10, updated_s=now_s)
    short, long = read_status(tmp_path / "exp").runs
    assert (short.step, short.max_steps, short.num_rows) == (21, 60, 9)
    assert short.steps_per_s == pytest.approx(2.1)
    assert (long.step, long.max_steps, long.num_rows) == (0, 1000, 143)


@pytest.mark.parametrize("rows", [0, 1])
def test_there_is_no_rate_before_the_first_step(tmp_path: Path, rows: int) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0, rows_written=rows, loss=None)
    status = read_status(tmp_path / "exp")
    assert (status.runs[0].step, status.runs[0].steps_per_s) == (0, None)
    assert status.eta_s is None
    assert status.steps_left == 1000


def test_eta_counts_runs_side_by_side_and_those_that_wait(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 6)
    now_s = time.time()
    for index, steps in ((0, 500), (1, 250)):  # 10 and 5 steps/s
        times = {"started_s": now_s - 50, "updated_s": now_s}
        write_journal(experiment, index, rows_written=steps + 1, **times)
    write_journal(experiment, 2, rows_written=1, started_s=now_s, updated_s=now_s)  # no rate yet
    write_journal(experiment, 3, state="failed")
    status = read_status(tmp_path / "exp")
    # 0 is done after 50 s; 1 after 150 s; 2, at 7.5 steps/s, after 133 s.
    # 4 takes the place of 0 until 183 s, and 5 that of 2 until 267 s.
    assert status.eta_s == pytest.approx(1000 / 7.5 * 2)
    assert status.steps_left == 500 + 750 + 1000 + 2000
    assert status.bytes_written == 4 * 301_000_000
    assert overall(status).startswith(
        "0 of 6 runs done, 1 failed, 3 running, 2 waiting; 4250 steps left, about 4 min 27 s; 1204.0 MB"
    )


def test_what_is_no_experiment(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"is no experiment's folder: it has no experiment\.json\. Give"):
            read_status(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no experiment's folder"):
        read_status(tmp_path / "file")
    for text in ("{", "[]", '{"config": {}}', "[" * 100_000):
        (tmp_path / "experiment.json").write_text(text)
        with pytest.raises(RunError, match=r"Cannot read .*experiment\.json: .*Bring back"):
            read_status(tmp_path)


def test_an_experiment_has_ended_when_nothing_can_change_any_more(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    finish(experiment, 0)
    assert not read_status(tmp_path / "exp").ended
    write_journal(experiment, 1, state="failed")
    assert read_status(tmp_path / "exp").ended
    experiment.paths.lock.touch()  # a launcher is there and may try once more
    assert not read_status(tmp_path / "exp").ended
    os.utime(experiment.paths.lock, times=(time.time() - SILENT_S - 1,) * 2)  # it was killed
    assert read_status(tmp_path / "exp").ended
    experiment.paths.lock.touch()
    finish(experiment, 1)
    assert read_status(tmp_path / "exp").ended


def busy_experiment(folder: Path) -> ExperimentStatus:
    swept = [{"model.init_scale": 0.005, "data.corpus_path": "/a/long/path/to/a/corpus.txt"}]
    experiment = make_experiment(folder, 10, swept=swept)
    finish(experiment, 0)
    write_journal(experiment, 1, state="failed", message="OSError: [Errno 5] Input/output [bold]error")
    write_journal(experiment, 2, attempt=3, loss=math.nan, first_bad_step=17)
    write_journal(experiment, 3, updated_s=time.time() - 125, started_s=time.time() - 200)
    write_journal(experiment, 4, bytes_written=5_145_150_010)
    return read_status(folder)


def test_at_130_columns_every_column_is_there(tmp_path: Path) -> None:
    text = table_text(busy_experiment(tmp_path / "exp"), 130)
    header, *rows = text.splitlines()
    assert words(header) == "run seed init_scale corpus_path device step steps/s loss MB state retries"
    assert words(rows[2]) == "2 44 0.005 ...h/to/a/corpus.txt cuda:2 300/1000 5.00 nan 301.0 running 2"
    assert "5145.2" in rows[4]
    assert words(rows[9]) == "9 51 0.005 ...h/to/a/corpus.txt 0/1000 waiting 0"
    # Numbers are right-aligned: they end where their titles end.
    for title in ("run", "seed", "step", "steps/s", "loss", "MB"):
        end = header.index(f"{title} ") + len(title)
        assert all(row[end - 1] != " " and row[end] == " " for row in (rows[2], rows[4])), title
    assert "1 of 10 runs done, 1 failed, 2 running, 1 silent, 5 waiting; 7100 steps left" in words(text)
    assert "not gathered yet" in words(text)
    assert "run 1 failed: OSError: [Errno 5] Input/output [bold]error" in text
    assert "run 2: loss not finite from step 17 on" in text
    assert re.search(r"run 3: no sign of life from node7 for 2 min [5-9] s", text)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130])
def test_a_narrow_table_has_fewer_columns_and_none_cut(tmp_path: Path, width: int) -> None:
    lines = table_text(busy_experiment(tmp_path / "exp"), width).splitlines()
    assert max(map(len, lines)) <= width
    header, rows = lines[0], lines[1:11]
    for title in ("run", "step", "state"):
        assert title in header.split()
    assert [row.split()[0] for row in rows] == [str(run) for run in range(10)]
    assert all(re.search(r"\b(\d+)/1000\b", row) for row in rows)
    assert "\u2026" not in "".join(lines)
    assert lines[11].strip() == ""
    if width == 80:
        assert words(header) == "run seed init_scale corpus_path step steps/s loss state"


def test_live_metrics_go_after_the_loss_and_the_last_make_way_first(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    write_journal(experiment, 0, live={"dead/speed": 0.00123456, "live/speed": math.inf, "live/\x1b[2J": 1})
    status = read_status(tmp_path / "exp")
    lines = table_text(status, 130).splitlines()
    assert words(lines[0]) == (
        "run seed device step steps/s loss dead/speed live/speed live/\\x1b[2J MB state retries"
    )
    assert words(lines[1]) == "0 42 cuda:0 300/1000 5.00 4.1250 0.001235 inf 1 301.0 running 0"
    assert words(lines[2]) == "1 43 0/1000 waiting 0"
    assert words(table_text(status, 65).splitlines()[0]) == "run seed step steps/s loss dead/speed state"


def test_at_80_columns_a_usual_sweep_loses_megabytes_only(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 4, swept=[{"model.init_scale": 0.005}])
    for index in range(4):
        write_journal(experiment, index)
    header = table_text(read_status(tmp_path / "exp"), 80).splitlines()[0]
    assert words(header) == "run seed init_scale device step steps/s loss state retries"


def test_swept_keys_with_the_same_last_part_keep_their_whole_name(tmp_path: Path) -> None:
    make_experiment(tmp_path / "exp", 1, swept=[{"model.seed": 1, "data.seed": 2, "model.n_layer": None}])
    header = table_text(read_status(tmp_path / "exp"), 130).splitlines()[0]
    assert header.split()[:5] == ["run", "seed", "model.seed", "data.seed", "n_layer"]


def test_hosts_are_shown_if_there_are_several(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    write_journal(experiment, 0, host="node1")
    assert "node1" not in table_text(read_status(tmp_path / "exp"), 130)
    write_journal(experiment, 1, host="node2")
    text = table_text(read_status(tmp_path / "exp"), 130)
    assert "host" in text.splitlines()[0]
    assert "node1" in text


def test_of_many_runs_the_urgent_ones_are_shown(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 100)
    for index in range(40):
        finish(experiment, index)
    write_journal(experiment, 70)
    for index in (60, 50):
        write_journal(experiment, index, state="failed", message="killed")
    lines = table_text(read_status(tmp_path / "exp"), 80).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["50", "60", "70", "0", "1"]
    assert len([line for line in lines if "/1000" in line]) == 30
    assert lines[31].strip() == "... 13 done, 57 waiting"
    assert "40 of 100 runs done, 2 failed, 1 running, 57 waiting" in " ".join(lines)


def test_many_messages_are_counted(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 8)
    for index in range(8):
        write_journal(experiment, index, state="failed", message=f"cause {index}")
    text = table_text(read_status(tmp_path / "exp"), 80)
    assert "cause 4" in text
    assert "cause 5" not in text
    assert "... and 3 more messages like these" in text


@pytest.mark.parametrize(
    ("gather", "file", "expected"),
    [
        ("none", None, "MB written"),
        ("single", None, "not gathered yet"),
        ("single", "exp.safetensors", "; gathered"),
        ("index", "exp.safetensors.index.json", "; gathered"),
    ],
)
def test_gathered_or_not(tmp_path: Path, gather: str, file: str | None, expected: str) -> None:
    experiment = make_experiment(tmp_path / "exp", 1, gather=gather)
    finish(experiment, 0)
    if file is not None:
        (tmp_path / "exp" / file).touch()
    assert overall(read_status(tmp_path / "exp")).endswith(expected)


def test_durations_and_text_that_would_break_a_line() -> None:
    texts = [duration(seconds) for seconds in (0.4, 59.6, 200, 3599.6, 7500)]
    assert texts == ["0 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 5 min"]
    assert printable("caf\u00e9 \u0e20\n\x1b[2J\udcff") == "caf\u00e9 \u0e20\\n\\x1b[2J\\udcff"


STATUS = "import sys; from pathlib import Path; from flannel_pl.launch.status import status_verb\n"


def test_the_verb_in_a_process_of_its_own_starts_fast_and_imports_nothing_heavy(weird_tmp_path: Path) -> None:
    experiment = make_experiment(weird_tmp_path / "exp", 3)
    write_journal(experiment, 1, message="\udcff")
    code = STATUS + (
        "status_verb(Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    began_s = time.monotonic()
    command = [sys.executable, "-c", code, str(weird_tmp_path / "exp")]
    output = subprocess.check_output(command, text=True, timeout=60)
    assert time.monotonic() - began_s < 2
    assert "300/1000" in output
    assert output.splitlines()[-1] == "[]"
    assert not {path.name for path in (weird_tmp_path / "exp").iterdir()} - {"experiment.json", "run_1"}


def test_watching_without_a_terminal_prints_lines_until_the_end(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    finish(experiment, 0)
    write_journal(experiment, 1)
    code = STATUS + "status_verb(Path(sys.argv[1]), watch=True, interval_s=0.05)"
    command = [sys.executable, "-c", code, str(tmp_path / "exp")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline().startswith("run 0: done")
            assert watcher.stdout.readline().startswith("run 1: running on cuda:1, 300/1000 steps")
            assert watcher.stdout.readline().startswith("1 of 2 runs done, 1 running; 700 steps left")
            write_journal(experiment, 1, rows_written=402)
            assert watcher.stdout.readline().startswith("run 1: running on cuda:1, 401/1000 steps")
            finish(experiment, 1)
            done, overall_line = watcher.communicate(timeout=30)[0].splitlines()
        finally:
            watcher.kill()
    assert done.startswith("run 1: done on cuda:1")
    assert overall_line == "2 of 2 runs done; 4.0 MB written; not gathered yet"
    assert watcher.returncode == 0


def test_watching_on_a_terminal_redraws_and_ends_quietly_on_ctrl_c(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 2)
    write_journal(experiment, 1)
    code = STATUS + "status_verb(Path(sys.argv[1]), watch=True, interval_s=0.05); print('quiet')"
    with Terminal([sys.executable, "-c", code, str(tmp_path / "exp")], columns=80, lines=24) as terminal:
        terminal.wait_for("300/1000")
        write_journal(experiment, 1, rows_written=402)
        terminal.wait_for("401/1000")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert terminal.output.rstrip().endswith("quiet")
    assert "\x1b[?25h" in terminal.output  # the cursor is back


@pytest.mark.parametrize("interval_s", [0.0, -1.0, math.nan, math.inf])
def test_an_interval_that_is_none(tmp_path: Path, interval_s: float) -> None:
    make_experiment(tmp_path / "exp", 1)
    with pytest.raises(UserError, match=r"interval_s is .*, expected seconds, more than 0"):
        status_verb(tmp_path / "exp", watch=True, interval_s=interval_s)


def test_a_status_is_frozen(tmp_path: Path) -> None:
    make_experiment(tmp_path / "exp", 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_status(tmp_path / "exp").name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("gathered", [False, True])
def test_an_early_end_that_the_journal_has_not_heard_of(tmp_path: Path, gathered: bool) -> None:
    """The process was killed between the name and the journal's last entry."""
    paths = gathering_samples.experiment(tmp_path / "exp")
    gathering_samples.make_run(paths, 1, ends_at=2)
    journal = Journal(paths.run(1).journal)
    entry = journal.read()
    assert entry is not None
    assert (entry.state, entry.message, entry.ended_step, entry.num_rows) == ("done", "enough", 2, 3)
    journal.write(dataclasses.replace(entry, state="running", message="", ended_step=None, num_rows=7))
    if gathered:
        for run in range(3):
            Gatherer(paths.folder).add(run)
        Gatherer(paths.folder).finish()
        assert not paths.run(1).recording.exists()
    status = read_status(paths.folder)
    assert [(run.state, run.step, run.num_rows, run.ended) for run in status.runs] == [
        ("done", 6, 7, None),
        ("done", 2, 3, EarlyEnd(2, 6, "enough")),
        ("done", 6, 7, None),
    ]
    assert (status.steps_left, status.ended) == (0, True)
