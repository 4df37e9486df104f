"""What the disk allows and what flannel-pl makes of it: gather, verify, a cold row; and the short verbs.

A recording of one run at the notebook's sizes is made for it. It lies in the page cache, except where a
row is read cold. What is written is timed with its fsync.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flannel_pl
from benchmarks.figures import Figure, ratios
from benchmarks.recordings import record
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.schema import RECORDABLE
from flannel_pl.recording.gathering.gather import gather

NUM_READS = 20
NUM_CALLS = 5
PIECE_BYTES = 16 * 2**20


def measure(options: argparse.Namespace) -> list[Figure]:
    """Returns throughputs, the time to a cold row, and the times of the short verbs.

    Args:
        options: `shard_steps`, `repeats`, `size`, `folder`.
    """
    paths = record(options.folder / "disk", size=options.size, seeds="42", steps=options.shard_steps)
    shard, copy = paths.run(0).recording, options.folder / "copy"
    num_mb = shard.stat().st_size / 1e6
    piece = memoryview(os.urandom(PIECE_BYTES))
    _read_through(shard)
    speeds: dict[str, list[float]] = {"gather": [], "cp": [], "write": [], "verify": [], "cat": []}
    work: dict[str, Callable[[], object]] = {
        "cp": lambda: _copy(shard, copy),
        "gather": lambda: gather(paths.folder, mode="single"),
        "write": lambda: _write(copy, shard.stat().st_size, piece),
        "cat": lambda: _read_through(shard),
        "verify": lambda: _verify(shard),
    }
    for repeat in range(options.repeats):
        # There and back, so that none is always the one that comes after another.
        order = list(work.items())
        for name, action in reversed(order) if repeat % 2 else order:
            began_s = time.monotonic()
            action()
            speeds[name].append(num_mb / (time.monotonic() - began_s))
            for made in (copy, paths.gathered):  # so that nobody overwrites, and the cache keeps the shard
                made.unlink(missing_ok=True)
    gather(paths.folder, mode="single")
    return [
        Figure("a plain sequential write, fsync included", "MB/s", speeds["write"]),
        Figure("`cp`, fsync included", "MB/s", speeds["cp"]),
        Figure("gather, fsync included", "MB/s", speeds["gather"]),
        Figure("gather / `cp`", "", ratios(speeds["gather"], speeds["cp"]), limit=0.9, bound=">="),
        Figure("`cat > /dev/null`, warm", "MB/s", speeds["cat"]),
        Figure("verify, warm", "MB/s", speeds["verify"]),
        Figure("verify / `cat`", "", ratios(speeds["verify"], speeds["cat"]), limit=0.8, bound=">="),
        Figure(
            f"one row of one run, all its tensors, cold, from a file of {num_mb / 1000:.2g} GB",
            "ms",
            _cold_rows_ms(shard),
            limit=20,
        ),
        _verb("--help"),
        _verb("status", str(paths.folder)),
        _verb("info", str(paths.gathered)),
    ]


def _read_through(path: Path) -> None:
    subprocess.run(["sh", "-c", 'cat "$1" > /dev/null', "cat", str(path)], check=True)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", str(source), str(target)], check=True)
    fd = os.open(target, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def _write(target: Path, num_bytes: int, piece: memoryview) -> None:
    """Writes as `dd` does: a piece over and over, then one fsync."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    done = 0
    while done < num_bytes:
        done += os.write(fd, piece[: num_bytes - done])
    os.fsync(fd)
    os.close(fd)


def _verify(path: Path) -> None:
    if not verify(path).ok:
        raise SystemExit(f"{path} is damaged; flannel-pl verify says where")


def _cold_rows_ms(shard: Path) -> list[float]:
    """Times opening the file and reading one row of each tensor after POSIX_FADV_DONTNEED."""
    times_ms = []
    draw = random.Random(0)
    for _ in range(NUM_READS):
        fd = os.open(shard, os.O_RDONLY)
        os.fsync(fd)  # what is not on the disk yet would stay in the cache
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        began_s = time.monotonic()
        with flannel_pl.open_recording(shard) as recording:
            run = recording.run(0)
            row = draw.randrange(run.num_rows)
            total = sum(run.tensor(name)[row].nbytes for name in RECORDABLE)
        times_ms.append(1000 * (time.monotonic() - began_s))
        assert total > 0
    return times_ms


def _verb(*words: str) -> Figure:
    """Times a verb as a user meets it: the whole process, its start included."""
    times_s = []
    for _ in range(NUM_CALLS):
        began_s = time.monotonic()
        command = [sys.executable, "-m", "flannel_pl", *words]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times_s.append(time.monotonic() - began_s)
    return Figure(f"`flannel-pl {words[0]}`, the whole process", "s", times_s, limit=0.5)
