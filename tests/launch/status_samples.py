"""Experiments as `status` finds them: real records and journals, recordings by name only."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flannel_pl.config import Config
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment, Run
from flannel_pl.recording.writing.journal import Journal, JournalEntry

MAX_STEPS = 1000


def make_experiment(
    folder: Path, num_runs: int, *, swept: Sequence[Mapping[str, Any]] = ({},), **settings: Any
) -> ResolvedExperiment:
    """Makes the folder with its record. Seeds are 42, 43, ...; swept values are taken in turn."""
    config = {
        "experiment": {"name": folder.name, "run": None, "gather": "single", **settings},
        "trainer": {"max_steps": MAX_STEPS},
        "recorder": {"every_n_steps": 1},
    }
    runs = tuple(Run(index, 42 + index, dict(swept[index % len(swept)])) for index in range(num_runs))
    experiment = ResolvedExperiment(Config.of(config), runs, ExperimentPaths(folder, folder.name))
    folder.mkdir(parents=True)
    write_record(experiment)
    return experiment


def write_record(experiment: ResolvedExperiment, *, settled: Mapping[str, Any] | None = None) -> None:
    record = experiment.record({}, settled=dict(settled or {}))
    experiment.paths.record.write_text(json.dumps(record), encoding="utf-8")


def write_journal(experiment: ResolvedExperiment, index: int, **changes: Any) -> JournalEntry:
    """Writes an entry into the journal of a run: by default, it is at step 300 after a minute."""
    run, now_s = experiment.runs[index], time.time()
    fields: dict[str, Any] = {
        **{"run": index, "seed": run.seed, "swept": run.swept, "state": "running", "attempt": 1},
        **{"device": f"cuda:{index}", "host": "node7", "pid": 1, "num_rows": MAX_STEPS + 1, "loss": 4.125},
        **{"rows_written": 301, "rows_committed": 300, "bytes_written": 301_000_000},
        **{"started_s": now_s - 60, "updated_s": now_s},
    }
    entry = JournalEntry(**(fields | changes))
    experiment.paths.run(index).folder.mkdir(exist_ok=True)
    Journal(experiment.paths.run(index).journal).write(entry)
    return entry


def finish(experiment: ResolvedExperiment, index: int, **changes: Any) -> None:
    """Lets a run be done."""
    paths = experiment.paths.run(index)
    paths.folder.mkdir(exist_ok=True)
    new = paths.folder / "new"  # whoever watches sees the whole recording, and it before the run is done
    new.write_bytes(bytes(2_000_000))
    new.rename(paths.recording)
    rows = {"rows_written": MAX_STEPS + 1, "rows_committed": MAX_STEPS + 1}
    write_journal(experiment, index, **({"state": "done"} | rows | changes))
