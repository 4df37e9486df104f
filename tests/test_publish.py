"""Syncing on systems as they are: macOS's own call, and folders that cannot be synced."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_pl.publish import sync, sync_folder

F_FULLFSYNC = 51


def refused(code: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A system with macOS's call; lists how files are synced."""
    called: list[str] = []
    real = os.fsync

    def full_sync(fd: int, request: int) -> None:
        assert request == F_FULLFSYNC
        called.append("full")

    def fsync(fd: int) -> None:
        called.append("fsync")
        real(fd)

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", fsync)
    return called


def test_where_fsync_is_not_enough_the_disk_empties_its_cache_too(tmp_path: Path, calls: list[str]) -> None:
    with (tmp_path / "file").open("wb") as file:
        sync(file.fileno())
    sync_folder(tmp_path)
    assert calls == ["full", "full"]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENODEV])
def test_a_file_system_that_has_no_full_sync_is_synced_as_elsewhere(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", refused(code))
    with (tmp_path / "file").open("wb") as file:
        sync(file.fileno())
    assert calls == ["fsync"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_full_sync_that_fails_is_not_tried_in_another_way(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", refused(code))
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=os.strerror(code)):
        sync(file.fileno())
    assert calls == []


FOLDER_REFUSALS = (
    *(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR),
    errno.ENOTTY,
)


@pytest.mark.parametrize("name", ["fsync", "open"])
@pytest.mark.parametrize("code", FOLDER_REFUSALS, ids=lambda code: errno.errorcode[code])
def test_a_folder_that_cannot_be_synced_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    if name == "open" and code not in (errno.EACCES, errno.EPERM):
        pytest.skip("only a permission keeps a folder that is written to from being opened")
    monkeypatch.setattr(os, name, refused(code))
    sync_folder(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_disk_that_fails_to_sync_a_folder_is_no_system_without_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", refused(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        sync_folder(tmp_path)


def test_nothing_else_syncs_a_file() -> None:
    package = Path(__file__).parents[1] / "flannel_pl"
    users = {path.name for path in package.rglob("*.py") if "os.fsync(" in path.read_text(encoding="utf-8")}
    assert users == {"publish.py"}
