"""What cannot be read at the moment is never taken for lost: nothing is removed, and no run begins anew."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import flannel_pl
from flannel_pl.adapters.lightning.checkpoint import checkpoint_digest
from flannel_pl.errors import RunError, Unreachable
from flannel_pl.experiment import ExperimentPaths, Run, RunPaths
from flannel_pl.launch.folder import unfinished_runs
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.gathering.gathered import gathered_runs
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.recording.integrity.findings import describe_part
from flannel_pl.training.checkpoint import find_resume_point
from tests.recording.gathering_samples import experiment
from tests.recording.recording_samples import make_writer, write_rows

CODES = [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ETIMEDOUT]

SetUnreachable = Callable[[Path, int], None]


@pytest.fixture
def set_unreachable(monkeypatch: pytest.MonkeyPatch) -> SetUnreachable:
    """Lets every attempt to open a file for reading fail."""
    real = os.open

    def refuse(path: Path, code: int) -> None:
        def open_file(name: str | Path, flags: int, mode: int = 0o777) -> int:
            if Path(name) == path and not flags & os.O_CREAT:
                raise OSError(code, os.strerror(code), str(path))
            return real(name, flags, mode)

        monkeypatch.setattr(os, "open", open_file)

    return refuse


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("what", ["rows", "checkpoint"])
def test_a_run_does_not_begin_anew(
    tmp_path: Path, set_unreachable: SetUnreachable, monkeypatch: pytest.MonkeyPatch, code: int, what: str
) -> None:
    paths = RunPaths(tmp_path)
    writer = make_writer(tmp_path)
    write_rows(writer, range(4))
    checkpoint = paths.checkpoint(3, "0" * 16)
    writer.checkpoint(checkpoint, b"weights")
    writer.abort("killed")
    before = content_of(tmp_path)
    if what == "rows":
        set_unreachable(paths.partial, code)
        with pytest.raises(Unreachable, match=r"recording.partial: "):
            num_good_rows(paths.partial)
    else:
        set_unreachable(checkpoint, code)
    with pytest.raises(Unreachable, match=r"Cannot read .*(recording.partial|checkpoint-3-0+.ckpt): "):
        find_resume_point(paths, every_n_steps=1, note=print)
    monkeypatch.undo()
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("what", ["growing_notes", "growing", "gathered"])
def test_gathering_neither_removes_nor_replaces_the_only_copy(
    tmp_path: Path, set_unreachable: SetUnreachable, monkeypatch: pytest.MonkeyPatch, code: int, what: str
) -> None:
    paths = experiment(tmp_path / "flannel3")
    if what == "gathered":
        gather(paths.folder)
    else:
        Gatherer(paths.folder).add(1)
    before = content_of(tmp_path)
    set_unreachable(getattr(paths, what), code)

    def go_on() -> None:
        gatherer = Gatherer(paths.folder)
        gatherer.add(1)
        gatherer.finish()

    with pytest.raises(RunError, match=rf"Cannot (read|write) .*{getattr(paths, what).name}: "):
        go_on()
    if what != "growing":
        with pytest.raises(Unreachable, match="Cannot read"):
            gathered_runs(paths.folder)
    monkeypatch.undo()
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_verify_calls_it_unreachable_and_gives_no_advice_to_delete_it(
    tmp_path: Path, set_unreachable: SetUnreachable, code: int
) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=True)
    set_unreachable(paths.run(1).recording, code)
    report = verify(paths.folder)
    assert not report.ok
    states = {part.path: part.state for part in report.parts}
    assert states[paths.run(1).recording] == "unreachable"
    said = "\n".join(line for part in report.parts for line in describe_part(part))
    assert "elete" not in said
    assert "again it" not in said
    assert os.strerror(code) in said


def test_a_finished_experiment_whose_file_is_unreachable_is_not_trained_again(
    tmp_path: Path, set_unreachable: SetUnreachable
) -> None:
    paths = experiment(tmp_path / "flannel3")
    gather(paths.folder)
    set_unreachable(paths.gathered, errno.ESTALE)

    class Asked:
        paths = ExperimentPaths(tmp_path / "flannel3", "flannel3")
        selected = ()

    with pytest.raises(Unreachable, match="Stale file handle"):
        unfinished_runs(Asked())  # type: ignore[arg-type]


@contextmanager
def path_away(path: Path) -> Iterator[None]:
    """Puts a link to a disk that is not mounted in the place of a file."""
    elsewhere = path.with_name("disk")
    path.rename(elsewhere)
    path.symlink_to("/not mounted/disk")
    yield
    assert path.is_symlink()
    elsewhere.replace(path)


def named_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_symlink() or path.is_file()}


@pytest.mark.parametrize("what", ["growing_notes", "growing", "gathered"])
def test_a_link_that_leads_nowhere_is_not_taken_for_a_file_that_was_never_made(
    tmp_path: Path, what: str
) -> None:
    paths = experiment(tmp_path / "flannel3")
    if what == "gathered":
        gather(paths.folder)
    else:
        Gatherer(paths.folder).add(1)
    link: Path = getattr(paths, what)
    with path_away(link):
        before = named_in(tmp_path)
        for ask in (gathered_runs, gather, lambda folder: Gatherer(folder).add(0)):
            with pytest.raises(Unreachable, match=rf"{link.name}: .* mount the disk that it is on"):
                ask(paths.folder)
        assert not verify(paths.folder).ok
        assert named_in(tmp_path) == before


def test_a_run_whose_file_is_behind_such_a_link_does_not_begin_anew(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=True)
    link = paths.run(1).recording

    class Asked:
        def __init__(self) -> None:
            self.paths = paths
            self.selected = [Run(index, index, {}) for index in (0, 1)]

    with path_away(link):
        with pytest.raises(Unreachable, match=r"run_1/recording\.safetensors: No such file"):
            unfinished_runs(Asked())  # type: ignore[arg-type]
        report = verify(paths.folder)
        assert {part.path: part.state for part in report.parts}[link] == "unreachable"
        assert "again it" not in "\n".join(line for part in report.parts for line in describe_part(part))
        with pytest.raises(Unreachable), flannel_pl.open_recording(paths.folder):
            pass

    run = RunPaths(tmp_path / "run")
    run.folder.mkdir()
    writer = make_writer(run.folder)
    write_rows(writer, range(4))
    checkpoint = run.checkpoint(3, checkpoint_digest(b"weights"))
    writer.checkpoint(checkpoint, b"weights")
    writer.abort("killed")
    for path in (run.partial, checkpoint):
        with path_away(path), pytest.raises(Unreachable, match=rf"{path.name}: No such file"):
            find_resume_point(run, every_n_steps=1, note=print)
    assert find_resume_point(run, every_n_steps=1, note=print) is not None


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("what", ["record", "index"])
def test_what_describes_recordings_is_called_unreachable_too(
    tmp_path: Path, set_unreachable: SetUnreachable, code: int, what: str
) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=True)
    paths.index.write_text('{"weight_map": {}}')
    set_unreachable(getattr(paths, what), code)
    with pytest.raises(Unreachable, match=rf"Cannot read .*: {os.strerror(code)}\. .*, then try again\."):
        gather(paths.folder) if what == "record" else flannel_pl.open_recording(paths.index)
