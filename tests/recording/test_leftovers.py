"""What a power cut left goes with the next command that holds the lock; what lives, or counts, stays."""

import json
import os
import time
from pathlib import Path

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.writing.leftovers import clear, clear_run, has_leftovers
from flannel_pl.recording.writing.lock import Lock
from tests.recording.recording_samples import make_experiment

DEAD = json.dumps({"host": os.uname().nodename, "pid": 7, "since": "2026-01-01 00:00:00"})


def names(paths: ExperimentPaths) -> set[str]:
    return {str(path.relative_to(paths.folder)) for path in paths.folder.rglob("*") if path.is_file()}


def test_what_nobody_will_read_goes_and_nothing_else(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "it", num_runs=2)
    for name in (
        *("it.safetensors.partial", "it.safetensors.gathered.json", "notes.partial", "metrics.csv"),
        *(
            "run_0/recording.partial",
            "run_0/mine.ckpt.partial",
            "run_1/checkpoint-3-00.ckpt",
            "run_0/log.txt",
        ),
    ):
        (paths.folder / name).write_bytes(b"x")
    kept = names(paths)
    assert not has_leftovers(paths, range(2))
    for name in (
        *("experiment.json.partial", "live_dead_tokens.safetensors.partial", "jobs.json.partial"),
        *("it.safetensors.index.json.partial", "it.extras.safetensors.partial"),
        *("run_0/checkpoint-2-0123456789abcdef.ckpt.partial", "run_1/config.yaml.partial"),
    ):
        (paths.folder / name).write_bytes(b"x")
        assert has_leftovers(paths, range(2)), name
    for run in range(2):
        paths.run(run).lock.write_text(DEAD)
    clear(paths, range(2))
    assert names(paths) == kept
    assert not has_leftovers(paths, range(2))


def test_the_files_of_a_run_that_trains_stay(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "it", num_runs=2)
    living = paths.folder / "run_1" / "checkpoint-2-0123456789abcdef.ckpt.partial"
    living.write_bytes(b"being written")
    lock = Lock(paths.run(1).lock, what="run 1")
    lock.acquire()
    began_s = time.monotonic()
    clear(paths, range(2))
    assert time.monotonic() - began_s < 2
    assert living.exists()
    lock.check(look=True)
    clear_run(paths.run(1))  # which its holder does
    assert not living.exists()
    lock.release()
