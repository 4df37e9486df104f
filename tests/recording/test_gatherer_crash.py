import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify, verify_verb
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.gathering.gathered import gathered_runs
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.recording.reader import open_recording
from tests.recording.damage import fail_at, flipped, write_byte
from tests.recording.gathering_samples import (
    assert_gathered,
    experiment,
    hide,
    make_run,
    tensors_of,
)


def damage_copy(paths: ExperimentPaths, run: int) -> None:
    gatherer = Gatherer(paths.folder)
    assert gatherer._growing is not None
    offset = gatherer._growing.layout.offsets[f"run_{run}_grads"] + 250
    write_byte(paths.growing, offset, 0xAA)


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=True)
    expected = tensors_of(paths)
    Gatherer(paths.folder).add(1)
    damage_copy(paths, 1)
    gather(paths.folder)
    assert_gathered(paths, expected, shards=3)


@pytest.mark.parametrize("at", ["add", "finish"])
def test_a_damaged_copy_without_shard_is_recorded_again(tmp_path: Path, at: str) -> None:
    paths = experiment(tmp_path / "flannel3")
    expected = tensors_of(paths)
    shutil.copytree(paths.run(1).folder, tmp_path / "copy")
    Gatherer(paths.folder).add(1)
    damage_copy(paths, 1)
    gatherer = Gatherer(paths.folder)
    act: Callable[[], Any] = gatherer.finish if at == "finish" else lambda: gatherer.add(1)
    with pytest.raises(
        RunError, match=r"partial is damaged where run 1 is \(grads is not as .* row 1 .* no other copy"
    ):
        act()
    assert 1 not in gathered_runs(paths.folder)
    with pytest.raises(RunError, match=r"no finished recording of run 1 \(1 of 3 runs\)"):
        Gatherer(paths.folder).finish()
    shutil.copytree(tmp_path / "copy", paths.run(1).folder, dirs_exist_ok=True)
    gather(paths.folder)
    assert_gathered(paths, expected, shards=0)


def test_a_damaged_shard_is_not_gathered_nor_dropped(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    shard = paths.run(1).recording
    layout = read_layout(shard)
    for position in (100, layout.offsets["momentum"], layout.offsets["checksums"]):
        with flipped(shard, position, bit=3):
            gatherer = Gatherer(paths.folder)
            gatherer.add(0)
            with pytest.raises(RunError, match=r"run_1/recording.safetensors.* run flannel-pl fit again"):
                gatherer.add(1)
            assert shard.exists()
            assert gathered_runs(paths.folder) == {0}
    gather(paths.folder)
    assert verify(paths.folder).ok


@pytest.mark.parametrize("keep_shards", [True, False])
@pytest.mark.parametrize("what", ["notes", "size"])
def test_damaged_notes(tmp_path: Path, what: str, keep_shards: bool) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=keep_shards)
    expected = tensors_of(paths)
    Gatherer(paths.folder).add(1)
    if what == "notes":
        write_byte(paths.growing_notes, 300, 0x21)
    else:
        os.truncate(paths.growing, 5000)
    if keep_shards:
        assert gathered_runs(paths.folder) == ({1} if what == "size" else set())
        gather(paths.folder)
        assert_gathered(paths, expected, shards=3)
    else:
        with pytest.raises(RunError, match=r"Run 1 may be in .*partial and nowhere else: .* or delete"):
            Gatherer(paths.folder)
        assert paths.growing.exists()
        paths.growing_notes.unlink()
        for act in (Gatherer, gathered_runs, gather):  # without its notes it may still be the only copy
            with pytest.raises(RunError, match=r"gathered.json is not there. Run 1 may be in .* or delete"):
                act(paths.folder)
        assert paths.growing.exists()
        paths.growing.unlink()
        with pytest.raises(RunError, match=r"no finished recording of run 1 \(1 of 3"):
            gather(paths.folder)


def test_notes_of_a_later_version(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    Gatherer(paths.folder).add(1)
    for text in (b"[]", b"{}", b'{"kinds": [{"a": 1}], "runs": {}}', b'{"kinds": [], "runs": {"x": 1}}'):
        content = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
        paths.growing_notes.write_bytes(content)
        with pytest.raises(RunError, match=r"not as this version of flannel-pl writes it .* Run 1 may be in"):
            Gatherer(paths.folder)
        assert paths.growing_notes.read_bytes() == content


@pytest.mark.parametrize("keep_shards", [True, False])
def test_missing_masks_cost_nothing_that_is_gathered(tmp_path: Path, keep_shards: bool) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=keep_shards)
    expected = tensors_of(paths)
    Gatherer(paths.folder).add(1)
    masks, growing = paths.masks.read_bytes(), paths.growing.read_bytes()
    paths.masks.unlink()
    with pytest.raises(RunError, match=r"live_dead_tokens.safetensors is missing; copy the masks"):
        gather(paths.folder)
    assert paths.growing.read_bytes() == growing
    paths.masks.write_bytes(masks)
    gather(paths.folder)
    assert_gathered(paths, expected, shards=3 if keep_shards else 0)


def test_every_bit_of_the_notes_counts(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    Gatherer(paths.folder).add(1)
    path = paths.growing_notes
    draw = random.Random(0)
    for position in range(path.stat().st_size):
        with flipped(path, position, bit=draw.randrange(8)), pytest.raises(RunError, match="is damaged"):
            gathered_runs(paths.folder)


def test_what_is_gathered_so_far_can_be_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = experiment(tmp_path / "flannel3")
    hide(paths, 0)
    gatherer = Gatherer(paths.folder)
    gatherer.add(1)
    gatherer.add(2)
    assert verify_verb(paths.folder) == 1
    out = capsys.readouterr().out
    assert f"unfinished {paths.growing}, run 1: 7 rows, " in out
    assert f"unfinished {paths.growing}, run 2: 7 rows, " in out
    assert f"unfinished {paths.run(0).recording}, run 0: 0 rows" in out
    assert "3 unfinished, 0 ok" in out
    damage_copy(paths, 1)
    assert verify(paths.folder).damage == ("grads is not as its checksum says in row 1 (step 1)",)
    write_byte(paths.growing_notes, 300, 0x21)
    assert "gathered.json is damaged" in verify(paths.folder).damage[0]
    with pytest.raises(UserError, match=r"partial is still being gathered; verify its folder"):
        verify(paths.growing)
    with pytest.raises(UserError, match=r"no finished recording; .*safetensors.partial is begun"):
        open_recording(paths.folder)


def test_a_lost_partial_file_loses_only_what_was_in_it(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    Gatherer(paths.folder).add(1)
    paths.growing.unlink()
    assert gathered_runs(paths.folder) == frozenset()
    with pytest.raises(RunError, match=r"no finished recording of run 1 \(1 of 3 runs\)"):
        Gatherer(paths.folder).finish()


def test_a_finished_file_that_is_replaced_counts_only_if_it_is_right(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    expected = tensors_of(paths)
    gather(paths.folder, mode="single")
    old = paths.gathered.read_bytes()
    paths.gathered.rename(tmp_path / "old")
    for run in range(3):
        make_run(paths, run)
    Gatherer(paths.folder).add(1)  # run 1 is in the growing file only, then a finished file comes back
    notes, partial = paths.growing_notes.read_bytes(), paths.growing.read_bytes()
    (tmp_path / "old").rename(paths.gathered)
    write_byte(paths.gathered, read_layout(paths.gathered).offsets["run_1_grads"], 0xAA)
    gather(paths.folder)
    assert_gathered(paths, expected, shards=0)
    paths.gathered.write_bytes(old)
    paths.growing_notes.write_bytes(notes)
    paths.growing.write_bytes(partial)
    assert Gatherer(paths.folder).is_finished
    assert_gathered(paths, expected, shards=0)


def test_a_crash_at_the_very_end_leaves_a_shard_that_is_dropped_later(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    shutil.copytree(paths.run(2).folder, tmp_path / "copy")
    expected = tensors_of(paths)
    gather(paths.folder)
    shutil.copytree(tmp_path / "copy", paths.run(2).folder, dirs_exist_ok=True)
    Gatherer(paths.folder).finish()
    assert_gathered(paths, expected, shards=0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
def test_a_shard_is_dropped_only_when_its_copy_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = experiment(tmp_path / "flannel3", num_runs=1)
    calls: list[str] = []
    fsync, unlink = os.fsync, Path.unlink

    def traced_fsync(fd: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def traced_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "recording.safetensors":
            calls.append("drop")
        unlink(path, missing_ok)

    gatherer = Gatherer(paths.folder)
    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "unlink", traced_unlink)
    gatherer.add(0)
    notes = ["fsync flannel3.safetensors.gathered.json.partial", "fsync flannel3"]
    assert calls == [*notes, "fsync flannel3.safetensors.partial", *notes, "drop", "fsync run_0"]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    "name", ["pwrite", "fsync", "replace", "copy_file_range", "posix_fallocate", "ftruncate", "unlink"]
)
def test_every_single_failure_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, odd: bool
) -> None:
    template = experiment(tmp_path / "template" / "flannel3", num_runs=2)
    if odd:
        make_run(template, 1, num_tokens=40)
    expected = tensors_of(template)
    k = 0
    while True:
        k += 1
        paths = ExperimentPaths(tmp_path / str(k) / "flannel3", "flannel3")
        shutil.copytree(template.folder, paths.folder)
        failing, calls = fail_at(name, k)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            with contextlib.suppress(RunError):
                one_by_one(paths)
        one_by_one(paths)
        assert_gathered(paths, expected, shards=0)
        shutil.rmtree(paths.folder.parent)
        if calls[0] < k:
            break
    assert k > {"replace": 4, "fsync": 8, "pwrite": 10}.get(name, 1)


def one_by_one(paths: ExperimentPaths) -> None:
    """Adds each run when it finishes: the first is planned without the others."""
    gatherer = Gatherer(paths.folder)
    if not gatherer.is_finished:
        for run in range(2):
            if run not in gatherer.gathered:
                gatherer.add(run)
    gatherer.finish()


def test_a_failed_gather_leaves_no_partial_file_unless_it_is_needed(
    tmp_path: Path,
) -> None:
    for keep_shards in (True, False):
        paths = experiment(tmp_path / f"{keep_shards}", keep_shards=keep_shards)
        expected = tensors_of(paths)
        shard = paths.run(2).recording
        write_byte(shard, read_layout(shard).offsets["momentum"], 0xAA)
        with pytest.raises(RunError, match="copy of run 2 is wrong: momentum is not as its checksum says"):
            gather(paths.folder)
        assert paths.growing.exists() == paths.growing_notes.exists() == (not keep_shards)
        make_run(paths, 2)
        gather(paths.folder)
        assert_gathered(paths, expected, shards=3 if keep_shards else 0)


_KILLED_CODE = r"""
import sys
from flannel_pl.recording.gathering.gatherer import Gatherer
print("ready", flush=True)
gatherer = Gatherer(sys.argv[1])
if not gatherer.is_finished:
    for run in range(4):
        if run not in gatherer.gathered:
            gatherer.add(run)
gatherer.finish()
"""


def kill_often(tmp_path: Path, *, kills: int) -> None:
    draw = random.Random(7)
    template = experiment(tmp_path / "template" / "flannel3", num_runs=4)
    make_run(template, 3, num_tokens=60)
    expected = tensors_of(template)
    killed = finished = 0
    while killed < kills:
        paths = ExperimentPaths(tmp_path / f"{finished}" / "flannel3", "flannel3")
        shutil.copytree(template.folder, paths.folder)
        done, window_s = False, 0.06
        while not done:
            command = [sys.executable, "-c", _KILLED_CODE, str(paths.folder)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.readline() == b"ready\n"
                time.sleep(draw.uniform(0, window_s))
                process.send_signal(signal.SIGKILL)
                error = process.stderr.read().decode()
            assert process.returncode in (0, -signal.SIGKILL), error
            killed += process.returncode != 0
            done = process.returncode == 0
            window_s *= 1.2  # so that it gets to its end on a slow disk, too
            if paths.gathered.exists():
                assert verify(paths.gathered).ok
        assert_gathered(paths, expected, shards=0)
        shutil.rmtree(paths.folder.parent)
        finished += 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=8)


@pytest.mark.slow
def test_killed_at_any_moment_a_hundred_times(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=100)
