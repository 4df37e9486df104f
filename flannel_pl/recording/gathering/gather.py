"""Joins the finished shards of an experiment: copied into one file, or named by an index."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import ExperimentPaths
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.recording.experiment_tensors import experiment_tensors
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.gathering.contents import gathered_metadata, read_shard, run_metadata
from flannel_pl.recording.gathering.gathered import Mode
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.recording.gathering.index import write_index
from flannel_pl.recording.writing.disk import readable_bytes
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.terminal import make_console

Progress = Callable[[int, int], object]
"""Called with (bytes done, bytes in all)."""


def gather(folder: str | Path, *, mode: Mode | None = None, progress: Progress | None = None) -> Path:
    """Gathers the shards of a finished experiment, replacing what was gathered before.

    Does nothing if everything is in the gathered file and shards have been dropped since.

    Args:
        folder: The experiment's folder, with `experiment.json`, the masks and `run_*/recording.safetensors`.
        mode: "single" copies everything into `NAME.safetensors`; "index" writes `NAME.safetensors.index.json`
            in Hugging Face's sharded convention, plus a small file for scalars and masks, and leaves the
            tensors where they are. None takes `experiment.gather` of the experiment.
        progress: Called while bytes are copied.

    Returns:
        The gathered file or the index.

    Raises:
        UserError: If the folder is no experiment, is in use by another process, its config says not to
            gather, or the disk is too small.
        RunError: If runs are missing, a shard belongs to another experiment or is damaged, or the disk fails.
    """
    with _alone(folder):
        path, _ = _gather(folder, mode, progress or (lambda done, total: None), gatherer=None)
    return path


@contextlib.contextmanager
def _alone(folder: str | Path) -> Iterator[None]:
    """Keeps launchers and others who gather out of an experiment's folder."""
    paths = ExperimentPaths.find(Path(folder).absolute())
    read_record(paths)  # where there is no experiment no lock is made
    lock = Lock(paths.lock, what=f"the experiment {paths.folder}")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _gather(
    folder: str | Path, mode: Mode | None, progress: Progress, *, gatherer: Gatherer | None
) -> tuple[Path, bool]:
    """Returns the gathered file, and whether it was there already."""
    paths = ExperimentPaths.find(Path(folder).absolute())
    record = read_record(paths)
    chosen = mode or record.gather
    if chosen not in ("single", "index"):
        raise UserError(
            f"experiment.gather is {chosen!r}; say --mode single or --mode index to gather {folder}"
        )
    if chosen == "index":
        return _gather_index(paths, record), False
    gatherer = gatherer or Gatherer(paths.folder, record)
    if gatherer.is_finished and not all(is_there(paths.run(index).recording) for index in record.indices):
        return paths.gathered, True
    return _gather_single(gatherer, record.indices, progress), False


def _gather_single(gatherer: Gatherer, indices: list[int], progress: Progress) -> Path:
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(min(done, gatherer.total_bytes), gatherer.total_bytes)

    gatherer.check_missing()
    try:
        gatherer.check_space()
        for index in indices:
            gatherer.add(index, advance=advance)
        return gatherer.finish(advance=advance)
    except BaseException as error:
        if isinstance(error, Exception) or not gatherer.gathered:  # after Ctrl-C whole copies stay
            gatherer.abandon()
        raise


def _gather_index(paths: ExperimentPaths, record: ExperimentRecord) -> Path:
    indices = record.indices
    missing = [index for index in indices if not is_there(paths.run(index).recording)]
    if missing:
        raise RunError(
            f"{paths.folder} has no finished recording of run {', '.join(map(str, missing))} "
            f"({len(missing)} of {len(indices)} runs), and an index refers to the runs' own recordings. "
            "Run flannel-pl fit again to finish them, then gather."
        )
    shards = [read_shard(paths, record, index) for index in indices]
    extras = experiment_tensors(paths, record)
    metadata = gathered_metadata(record, [run_metadata(shard) for shard in shards], extras)
    return write_index(paths, shards, extras=extras, metadata=metadata)


def gather_verb(folder: Path, mode: Mode | None = None) -> None:
    """Joins the recordings of an experiment's runs into one.

    Args:
        folder: The experiment's folder, e.g. runs/flannel3.
        mode: single = one file with everything; index = a small file that says which run's file has what.
            Default: experiment.gather of the experiment.
    """
    with _alone(folder):
        gather_aloud(folder, mode=mode)


def gather_aloud(folder: str | Path, *, mode: Mode | None = None, gatherer: Gatherer | None = None) -> None:
    """Does what `gather` does, with a progress bar on a terminal, and says where the file is.

    The experiment's lock is held by whoever calls this.

    Args:
        folder: As of `gather`.
        mode: As of `gather`.
        gatherer: One that has copied some of the runs already, to end with: it checks no copy twice.

    Raises:
        UserError: As `gather` does.
        RunError: As `gather` does.
    """
    # Here, not at the top: training gathers too, without a progress bar of its own.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(stderr=True)
    columns = (TextColumn("Gathering"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Gathering", total=None)
        path, was_there = _gather(
            folder,
            mode,
            lambda done, total: bar.update(task, completed=done, total=total),
            gatherer=gatherer,
        )
    already = "gathered already: " if was_there else ""
    print(f"{already}{path} ({readable_bytes(path.stat().st_size)})")
