"""Reserving room on systems as they are, and what is done without it."""

import errno
import fcntl
import logging
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.writing import space
from flannel_pl.recording.writing.space import NO_SPACE, free_bytes, give_back, preallocate, reserve
from tests.recording.recording_samples import make_experiment

LINUX_ONLY = ("posix_fallocate", "copy_file_range", "preadv", "sched_getaffinity", "O_DIRECT", "O_TMPFILE")


def refused(code: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture(autouse=True)
def not_warned_yet() -> Iterator[None]:
    space._warn_of_no_reservation.cache_clear()
    yield
    space._warn_of_no_reservation.cache_clear()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


REFUSALS = sorted(set(errno.errorcode) - set(NO_SPACE))


def test_a_refused_reservation_leaves_the_size_and_says_so_once(
    fd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for code in REFUSALS:
        monkeypatch.setattr(os, "posix_fallocate", refused(code))
        os.ftruncate(fd, 0)
        preallocate(fd, 5000)
        assert os.fstat(fd).st_size == 5000
    monkeypatch.delattr(os, "posix_fallocate")
    preallocate(fd, 6000)
    assert os.fstat(fd).st_size == 6000
    assert [record.getMessage() for record in caplog.records] == [
        "This file system reserves no space for a recording, so a disk that others fill up may stop the run. "
        "It goes on then from its last checkpoint."
    ]


@pytest.mark.parametrize("code", NO_SPACE, ids=lambda code: errno.errorcode[code])
def test_a_full_disk_is_no_refusal(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refused(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        preallocate(fd, 5000)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system gives space back")
def test_what_is_given_back_is_free_and_the_rest_stays(fd: int) -> None:
    os.pwrite(fd, b"x" * 2**20, 0)
    os.fsync(fd)
    give_back(fd, 5000, 2**20 - 10000)
    assert os.fstat(fd).st_size == 2**20
    assert os.fstat(fd).st_blocks * 512 < 2**16
    assert os.pread(fd, 5000, 0) == os.pread(fd, 5000, 2**20 - 5000) == b"x" * 5000


def test_space_that_is_not_taken_back_does_no_harm(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(fd, b"x" * 5000, 0)
    read_only = os.open(tmp_path / "file", os.O_RDONLY)
    give_back(read_only, 0, 5000)  # EBADF
    os.close(read_only)
    monkeypatch.setattr(sys, "platform", "darwin")
    give_back(fd, 0, 5000)
    assert os.pread(fd, 5000, 0) == b"x" * 5000


@pytest.mark.parametrize("code", [None, errno.ENOTSUP, errno.ENOSPC])
def test_macos_reserves_behind_the_end_of_a_new_file(
    fd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int | None
) -> None:
    asked: list[tuple[int, ...]] = []

    def call(descriptor: int, request: int, argument: bytes) -> bytes:
        assert (descriptor, request, os.fstat(fd).st_size, len(argument)) == (fd, 42, 0, 32)
        asked.append(struct.unpack("=Iiqqq", argument))
        if code is not None:
            raise OSError(code, os.strerror(code))
        return argument

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "fcntl", call)
    monkeypatch.delattr(os, "posix_fallocate")
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match=os.strerror(code)):
            preallocate(fd, 5000)
    else:
        preallocate(fd, 5000)
        reserve(fd, 0, 5000)  # in the middle of a file it cannot, and nothing is said
        assert os.fstat(fd).st_size == 5000
    assert asked == [(4, 3, 0, 5000, 0)]
    assert len(caplog.records) == (code == errno.ENOTSUP)


def test_how_much_room_there_is_may_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    paths = make_experiment(tmp_path / "flannel3", num_runs=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=0, free=0))
    assert free_bytes(tmp_path) is None
    monkeypatch.setattr(shutil, "disk_usage", refused(errno.ENOSYS))
    assert free_bytes(tmp_path) is None
    gather(paths.folder)


def test_without_what_only_linux_has_a_recording_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    expected = gather(make_experiment(tmp_path / "a" / "flannel3").folder).read_bytes()
    for name in LINUX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    paths = make_experiment(tmp_path / "b" / "flannel3")
    assert gather(paths.folder).read_bytes() == expected
    assert verify(paths.folder).ok
    assert len(caplog.records) == 1
