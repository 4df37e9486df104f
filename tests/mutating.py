"""Structural mutations of every JSON and header that the program reads, and what each verb may do with them.

`python -m tests.mutating SEED NUMBER` tries others than the tests do, and prints what does not hold.
"""

import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import xxhash

from flannel_pl.__main__ import main
from flannel_pl.errors import RunError
from flannel_pl.models.tied_gpt2 import TiedGPT2
from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.formats.metadata import CHECKSUM_KEY, NO_CHECKSUM, checksum_field, header_checksum
from flannel_pl.recording.formats.specs import NUMPY_DTYPES
from flannel_pl.recording.gathering.gatherer import Gatherer

HANG_S = 60.0
"""Of the clock, on a machine that does other things; of computing 5 s are allowed."""

MAX_SECONDS, MAX_MEMORY_BYTES = 5.0, 300 * 2**20

EVIL = "\x1b]0;evil\x07\x1b[31m\x9b5m\u202e\r\n"


def _deep() -> Any:
    value: Any = 1
    for _ in range(200):
        value = [value]
    return value


VALUES: list[Any] = [
    *[None, True, False, 0, -1, 1, 7, 2**31, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf")],
    *["", "x", EVIL, "\udc80", "\0", "9" * 5000, "../../x", "/dev/zero", "run_0", "42..51", "null"],
    *[[], {}, [0], [[]], {"a": {}}, ["x", None], list(range(1000)), {EVIL: EVIL}, _deep()],
]


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    name: str
    file: str
    change: Callable[[Path, random.Random], None]
    draw: random.Random


def mutations(folder: Path, *, seed: int, number: int) -> Iterator[Mutation]:
    """Yields mutations of the files in an experiment's folder.

    Args:
        folder: The folder as it is before.
        seed: Other seeds, other mutations.
        number: How many.
    """
    draw = random.Random(seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kinds = {name: kind for name in files if (kind := _kind(name)) is not None}
    weights = [4 if kind in ("record", "tensors") else 1 for kind in kinds.values()]
    for index in range(number):
        name = draw.choices(list(kinds), weights)[0]
        choice = random.Random(f"{seed} {index}")
        mutate = draw.choice(_MUTATORS[kinds[name]])
        yield Mutation(f"{index}: {mutate.__name__} {name}", name, mutate, choice)


def _kind(name: str) -> str | None:
    last = name.rsplit("/", 1)[-1]
    if last in ("experiment.json", "slurm.json") or last.endswith(".index.json"):
        return "record"
    if last.endswith(".gathered.json"):
        return "notes"
    if last.endswith((".safetensors", "recording.partial", ".extras.safetensors")):
        return "tensors"
    if last == "events.jsonl":
        return "lines"
    if last == "journal":
        return "journal"
    return "checkpoint" if last.endswith(".ckpt") else "plain" if last in ("lock", "log.txt") else None


def changed(value: Any, draw: random.Random) -> Any:
    """Returns a JSON value with one to three changes anywhere in it."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(draw.choice(VALUES))
        holder, key = draw.choice(places)
        act = draw.randrange(8)
        if act == 0:
            del holder[key]
        elif act == 1 and isinstance(holder, dict):
            holder[draw.choice([EVIL, "", "x" * 3000, "run_9", "\udc80"])] = holder.pop(key)
        elif act == 2 and isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif act == 3:
            other, other_key = draw.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
        elif act == 4 and type(holder[key]) is int:
            holder[key] += draw.choice([-1, 1, 2**32, 2**63])
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else ()
    if isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _json_changed(path: Path, draw: random.Random) -> None:
    path.write_text(json.dumps(changed(json.loads(path.read_text()), draw)))


def _key_twice(path: Path, draw: random.Random) -> None:
    text = path.read_text()
    value = json.loads(text)
    key = draw.choice(list(value) or ["x"])
    path.write_text("{" + json.dumps(key) + ": 1, " + text.strip()[1:])


def _bytes_changed(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes() or b" ")
    for _ in range(draw.choice([1, 1, 3, 20])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size + 1))


def _longer(path: Path, draw: random.Random) -> None:
    with path.open("ab") as file:
        file.write(draw.choice([b"\0", b"}", EVIL.encode(), b"\xff\xfe", b"[" * 100_000, b"\0" * 10_000]))


def _other_kind(path: Path, draw: random.Random) -> None:
    """Puts something else than a file there."""
    path.rename(path.with_name(path.name + ".moved away by the test"))
    kind = draw.choice(["folder", "pipe", "nothing", "/dev/zero", "/proc/self/mem", path.name])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to(kind)


def _metadata_changed(path: Path, draw: random.Random) -> None:
    """Changes what a file says of itself; in three of four cases its checksum is right again."""
    header, data = _split(path)
    entries = json.loads(header[8:])
    said = entries.setdefault("__metadata__", {})
    if draw.random() < 0.1:
        entries["__metadata__"] = changed(said, draw)
    elif "flannel" in said:
        metadata = changed(json.loads(said["flannel"]), draw)
        with contextlib.suppress(TypeError):
            metadata[CHECKSUM_KEY] = NO_CHECKSUM
        said["flannel"] = json.dumps(metadata, sort_keys=draw.random() < 0.9)
    _write(path, entries, data, reseal=draw.random() < 0.75)


def _entries_changed(path: Path, draw: random.Random) -> None:
    """Changes what the header says of tensors: keys, dtypes, shapes, places."""
    header, data = _split(path)
    entries = json.loads(header[8:])
    said = entries.pop("__metadata__", None)
    if draw.random() < 0.3:
        key = draw.choice(list(entries))
        same = [
            code
            for code in NUMPY_DTYPES
            if NUMPY_DTYPES[code].itemsize == NUMPY_DTYPES[entries[key]["dtype"]].itemsize
        ]
        entries[key]["dtype"] = draw.choice(same)
    elif draw.random() < 0.3:
        key = draw.choice(list(entries))
        shape = entries[key]["shape"]
        entries[key]["shape"] = draw.choice(
            [[1, *shape], [*shape, 1], shape[::-1], [*shape[:-2], *shape[-1:]]]
        )
    elif draw.random() < 0.3:
        a, b = draw.choice(list(entries)), draw.choice(list(entries))
        entries[a], entries[b] = entries[b], entries[a]
    else:
        entries = changed(entries, draw)
    if isinstance(entries, dict) and said is not None:
        entries["__metadata__"] = said
    _write(path, entries, data, reseal=draw.random() < 0.75)


def _split(path: Path) -> tuple[bytes, bytes]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:start], content[start:]


def _write(path: Path, entries: Any, data: bytes, *, reseal: bool) -> None:
    text = json.dumps(entries, separators=(",", ":")).encode()
    start = -(-(8 + len(text)) // 4096) * 4096
    header = (start - 8).to_bytes(8, "little") + text.ljust(start - 8)
    if reseal:
        digits = header_checksum(header, NO_CHECKSUM)
        header = header.replace(checksum_field(NO_CHECKSUM), checksum_field(digits))
    path.write_bytes(header + data)


def _notes_changed(path: Path, draw: random.Random) -> None:
    text = json.dumps(changed(json.loads(path.read_bytes()[17:]), draw), sort_keys=True).encode()
    path.write_bytes(xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n")


def _line_changed(path: Path, draw: random.Random) -> None:
    lines = path.read_text().splitlines()
    index = draw.randrange(len(lines))
    lines[index] = json.dumps(changed(json.loads(lines[index]), draw))
    path.write_text("\n".join(lines) + "\n")


def _entry_changed(path: Path, draw: random.Random) -> None:
    """Changes both entries of a journal, whose checksums are right again."""
    content = path.read_bytes()
    slots = []
    for start in (0, 4096):
        body = content[start : start + 4096][:-18]
        if body.strip(b"\0 "):
            sequence, text = body.split(b" ", 1)
            sequence = draw.choice([sequence, sequence, b"x", b"-1", b"9" * 30])
            body = (sequence + b" " + json.dumps(changed(json.loads(text), draw)).encode()).ljust(4096 - 18)[
                : 4096 - 18
            ]
        slots.append(body + b" " + xxhash.xxh3_64_hexdigest(body).encode() + b"\n")
    path.write_bytes(b"".join(slots))


def _renamed(path: Path, draw: random.Random) -> None:
    digits = path.name.split("-")[-1]
    step = draw.choice(["0", "-1", "99999999999999999999", "\u0663", "1e3", "x", "3"])
    path.rename(
        path.with_name(f"checkpoint-{step}-{draw.choice([digits, digits[::-1], 'f' * 16 + '.ckpt'])}")
    )


_MUTATORS: dict[str, list[Callable[[Path, random.Random], None]]] = {
    "record": [*[_json_changed] * 8, _key_twice, _bytes_changed, _cut, _longer, _other_kind],
    "notes": [*[_notes_changed] * 8, _bytes_changed, _cut, _other_kind],
    "tensors": [
        *[_metadata_changed] * 8,
        *[_entries_changed] * 6,
        _bytes_changed,
        _cut,
        _longer,
        _other_kind,
    ],
    "lines": [*[_line_changed] * 4, _bytes_changed, _cut, _longer, _other_kind],
    "journal": [*[_entry_changed] * 6, _bytes_changed, _cut, _other_kind],
    "checkpoint": [_renamed, _bytes_changed, _cut, _other_kind],
    "plain": [_bytes_changed, _cut, _longer, _other_kind],
}


def faults(words: list[str], *, rows: Sequence[bytes], folder: Path) -> list[str]:
    """Runs a verb, and returns what it did that no verb may do, whatever it is given.

    Args:
        words: The command line.
        rows: What must not get lost: each is in some file of the folder afterwards, if it was before.
        folder: The experiment's folder.
    """
    before = [any(block in content for content in _contents(folder)) for block in rows]
    memory, began_s = _peak_bytes(), time.process_time()
    code, output = _run(words)
    found = []
    if time.process_time() - began_s > MAX_SECONDS:
        found.append(f"took {time.process_time() - began_s:.1f} s of computing")
    if _peak_bytes() - memory > MAX_MEMORY_BYTES:
        found.append(f"took {(_peak_bytes() - memory) / 2**20:.0f} MiB more")
    if code not in (0, 1, 2):
        found.append(f"ended with {code}")
    if "Traceback" in output or "a fault of flannel-pl" in output or "Warning" in output:
        found.append(output)
    if evil := [char for char in output if not (char.isprintable() or char in "\n\t")]:
        found.append(f"printed {evil}")
    after = [any(block in content for content in _contents(folder)) for block in rows]
    found += [
        f"lost the rows of run {run}: {output}" for run in range(len(rows)) if before[run] and not after[run]
    ]
    return found


def _run(words: list[str]) -> tuple[int | str, str]:
    stream = io.StringIO()
    previous = signal.signal(signal.SIGALRM, _hangs)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code: int | str = main(words)
    except BaseException:
        code = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return code, stream.getvalue()


def _hangs(number: int, frame: FrameType | None) -> None:
    raise AssertionError("hangs")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _contents(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*safetensors*"):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


@dataclass(frozen=True)
class Original:
    """An experiment's folder that is copied and never changed."""

    folder: Path
    rows: tuple[bytes, ...]
    """Of each finished run the bytes of its embeddings."""

    fit: tuple[str, ...]
    """The arguments that it was made with."""

    def attack(self, work: Path, *, seed: int, number: int, slow_verbs: bool = True) -> list[str]:
        """Mutates copies one by one, runs verbs on each, and returns all faults.

        Args:
            work: Where the copies are made.
            seed: Other seeds, other mutations.
            number: How many.
            slow_verbs: Whether plan, fit and report are tried on every fifth.
        """
        found = []
        copied = work / self.folder.name
        for index, mutation in enumerate(mutations(self.folder, seed=seed, number=number)):
            shutil.copytree(self.folder, copied)
            mutated = copied / mutation.file
            mutation.change(mutated, mutation.draw)
            for words in self._verbs(index if slow_verbs else 1, mutated, copied):
                said = faults(words, rows=self.rows, folder=copied)
                found += [f"seed {seed}, {mutation.name}, {words[0]}: {fault}" for fault in said]
            shutil.rmtree(copied)
        return found

    def _verbs(self, index: int, mutated: Path, copied: Path) -> Iterator[list[str]]:
        """Yields command lines: those that only read, then in turn one that takes longer, then gather."""
        folder = str(copied)
        yield from (["info", folder], ["verify", folder], ["status", folder], ["verify", str(mutated)])
        yield ["compare", str(self.folder), folder]
        fit = [*self.fit, "--experiment.output_dir", str(copied.parent)]
        slow = {0: ["plan", *fit], 5: ["fit", *fit], 10: ["report", folder], 15: ["info", str(mutated)]}
        yield from [slow[index % 20]] if index % 20 in slow else []
        yield ["gather", folder]


def originals(arguments: Sequence[str], folder: Path) -> list[Original]:
    """Makes an experiment in each state that there is: gathered, half gathered, with an index, stopped.

    Args:
        arguments: Of `fit`, for small data.
        folder: Where.
    """

    def made(name: str, *words: str, runs: int = 1, ended: int = 0) -> Original:
        fit = (*arguments, "--trainer.max_steps", "4", "--experiment.name", name, *words)
        for run in range(runs):
            only = ["--experiment.run", str(run)] if runs > 1 else []
            code, output = _run(["fit", *fit, *only, "--experiment.output_dir", str(folder)])
            assert code == ended, output
        shards = sorted((folder / name).glob("run_*/recording.safetensors"))
        return Original(folder / name, tuple(_embeddings(shard) for shard in shards), fit)

    gathered = made("gathered", "--experiment.seeds", "1..2", runs=2)
    growing = made("growing", "--experiment.seeds", "1..2", "--experiment.keep_shards", "false", runs=2)
    Gatherer(growing.folder).add(0)
    Gatherer(gathered.folder).add(0)
    assert _run(["gather", str(gathered.folder)])[0] == 0
    index = made("index", "--experiment.gather", "index", "--recorder.tokens", "dead")
    jobs = {"array_job": "17", "gather_job": "18", "runs": [0]}
    (index.folder / "slurm.json").write_text(json.dumps(jobs))
    forward = TiedGPT2.training_step

    def stop(self: TiedGPT2, *batch: Any) -> Any:
        if self.trainer.global_step == 3:
            raise RunError("stopped by the test")
        return forward(self, *batch)

    with mock.patch.object(TiedGPT2, "training_step", stop):
        stopped = made("stopped", "--launch.checkpoint_every", "1", ended=1)
    return [gathered, growing, index, stopped]


def _embeddings(shard: Path) -> bytes:
    with open_file(shard) as file:
        key = next(key for key in file.header.tensors if key.endswith("embeddings"))
        return file.read(key).tobytes()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="lightning")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "work").mkdir()
        made_in = originals(sys.argv[3:], work)
        for each in made_in:
            print(f"== {each.folder.name}", flush=True)
            found = each.attack(work / "work", seed=int(sys.argv[1]), number=int(sys.argv[2]))
            print(*found, sep="\n")
            print(f"== {len(found)} faults", flush=True)
