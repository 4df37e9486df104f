"""Checks recordings against the checksums they carry: every row there, and every bit as it was written."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flannel_pl.errors import RunError, Unreachable, UserError
from flannel_pl.paths import ExperimentPaths, RunPaths, is_growing, is_index, run_folders
from flannel_pl.recording.checking.consistency import check_folder, check_index
from flannel_pl.recording.checking.presence import missing
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.files import is_recording, open_file, read_header
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.integrity.cells import bad_cells, bad_static, num_leading_rows
from flannel_pl.recording.integrity.findings import (
    Advance,
    CheckedPart,
    Findings,
    NoChecksumsError,
    check_file,
    describe_part,
    header_damage,
    summarize_findings,
)
from flannel_pl.recording.integrity.parts import parts_of
from flannel_pl.terminal import make_console


def num_good_rows(path: Path) -> int:
    """Returns how many rows of an unfinished recording are there and right, counted from the first.

    Args:
        path: The partial file of a run.

    Returns:
        The row to go on with; 0 also if the file is not there, or its header, size or static tensors are
        damaged.

    Raises:
        Unreachable: If it cannot be read.
    """
    if not is_there(path):
        return 0
    try:
        with open_file(path) as file:
            parts = [] if header_damage(path, file.header) else parts_of(file.header)
            if len(parts) != 1 or "runs" in file.header.flannel:
                return 0
            (part,) = parts
            if bad_static(file, part.metadata["static_checksums"], prefix=part.prefix):
                return 0
            written = num_leading_rows(file, part)
            bad = bad_cells(file, part, first=0, last=written)
            return bad[0][0] if bad else written
    except Unreachable:  # nobody knows how many there are, and with 0 the run would begin anew
        raise
    except RunError:
        return 0


def verify(
    path: str | Path,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Findings:
    """Checks that every row is there and every bit is as it was written.

    Args:
        path: A shard, the partial file of an unfinished run, a gathered file, an index, a run's folder, or an
            experiment's: then all of its recordings, and that they, `experiment.json` and the masks agree.
        progress: Called with (bytes done, bytes in all).

    Raises:
        UserError: If there is no recording.
        RunError: If it is a single file that carries no checksums.
    """
    path = Path(path)
    files = _files(path)
    total = sum(file.stat().st_size for file in files if file.exists())
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    return Findings(tuple(_parts(path, files, advance)))


def _parts(path: Path, files: list[Path], advance: Advance) -> Iterator[CheckedPart]:
    for file in files:
        try:
            yield from check_file(file, advance=advance)
        except NoChecksumsError as error:
            if files == [path]:
                raise
            yield CheckedPart(file, None, 0, 0, 0.0, (str(error),))
    if path.is_dir() and not (is_recording(path) or _is_of_a_run(path)):
        paths = ExperimentPaths.find(path.absolute())
        if paths.record.exists():
            yield from check_folder(paths)
        else:
            what = "so nothing tells what else should be; bring it back, or verify single files"
            yield missing(paths.record, f", {what}")
    elif is_index(path):
        yield from check_index(path)


def _files(path: Path) -> list[Path]:
    """Returns the safetensors files to check."""
    if path.is_dir() and not is_recording(path):
        return _files_of_folder(path)
    if not path.exists():
        raise UserError(f"There is no {path}; expected a recording (.safetensors), an index, or a folder")
    if is_growing(path):
        raise UserError(f"{path} is still being gathered; verify its folder, which checks the runs in it")
    if not is_index(path):
        return [path]
    paths = ExperimentPaths.of_index(path)
    runs = read_header(paths.index_extras).flannel.get("runs", [])
    shards = [paths.run(run["index"]).recording for run in runs]
    return [paths.index_extras, *(shard for shard in shards if os.path.lexists(shard))]


def _is_of_a_run(folder: Path) -> bool:
    return any(os.path.lexists(path) for path in (RunPaths(folder).recording, RunPaths(folder).partial))


def _files_of_folder(folder: Path) -> list[Path]:
    run, experiment = RunPaths(folder), ExperimentPaths.find(folder.absolute())
    for candidate in (run.recording, run.partial):
        if os.path.lexists(candidate):
            return [candidate]
    if experiment.record.exists():
        runs = [experiment.run(index) for index in read_record(experiment).indices]
    else:
        runs = run_folders(folder)
    files = [run.recording if os.path.lexists(run.recording) else run.partial for run in runs]
    files += [experiment.gathered]
    if experiment.index.exists():
        files.append(experiment.index_extras)
    there = [file for file in files if os.path.lexists(file)]
    if not there and not experiment.record.exists():
        raise UserError(f"{folder} holds no recording to verify. flannel-pl fit makes one.")
    return there


def verify_verb(path: Path) -> int:
    """Checks every row of a recording against its checksum.

    Args:
        path: A recording (.safetensors), an index (.safetensors.index.json), a run's or experiment's folder.

    Returns:
        0 if everything is there and right, else 1.
    """
    # Here, not at the top: resuming needs the checks, but no progress bar.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    start_s = time.monotonic()
    console = make_console(stderr=True)
    columns = (TextColumn("Verifying"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Verifying", total=None)
        findings = verify(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for part in findings.parts:
        print("\n".join(describe_part(part)))
    print(summarize_findings(findings, elapsed_s=time.monotonic() - start_s))
    return 0 if findings.ok else 1
