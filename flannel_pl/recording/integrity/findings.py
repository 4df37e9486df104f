"""Checks one file from its first byte to its last, and says in words what is wrong with it."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flannel_pl.errors import RunError, Unreachable
from flannel_pl.paths import ExperimentPaths, RunPaths, is_extras, is_finished_file, is_growing, is_partial
from flannel_pl.recording.begun import how_it_goes_on
from flannel_pl.recording.formats.files import Header, TensorFile, open_file
from flannel_pl.recording.integrity.cells import bad_cells, bad_static, num_leading_rows
from flannel_pl.recording.integrity.expected import problems, shared_problems
from flannel_pl.recording.integrity.implied import experiment_problems, token_problems
from flannel_pl.recording.integrity.parts import RunPart, num_bytes_of, parts_of
from flannel_pl.recording.writing.disk import readable_bytes

Advance = Callable[[int], object]
"""Called with the number of bytes of each piece that is done."""

MAX_NAMED = 5
"""Damaged rows that are named one by one."""


class NoChecksumsError(RunError):
    """A file of something else than flannel-pl: there is nothing to verify it against."""


@dataclass(frozen=True)
class CheckedPart:
    """What was found in one file, or in one run of a gathered file."""

    path: Path
    run: int | None
    """None for what belongs to no run, and for a file that cannot be read."""

    num_rows: int
    """Rows that are there and right, if the run is not finished; else all of them."""

    num_bytes: int
    elapsed_s: float
    damage: tuple[str, ...] = ()
    """What is wrong, a sentence each."""

    unfinished: bool = False
    """Whether rows are still to come."""

    missing: bool = False
    """Whether there is no such file, and there should be."""

    foreign: bool = False
    """Whether it is whole and another experiment's, as far as that is what is wrong."""

    unreachable: bool = False
    """Whether it cannot be read at the moment, so that nobody knows what is in it."""

    @property
    def state(self) -> Literal["ok", "unfinished", "missing", "damaged", "unreachable"]:
        """What it amounts to."""
        if self.unreachable:
            return "unreachable"
        if self.missing:
            return "missing"
        return "damaged" if self.damage else "unfinished" if self.unfinished else "ok"


@dataclass(frozen=True)
class Findings:
    """What `verify` found."""

    parts: tuple[CheckedPart, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is there and right."""
        return all(part.state == "ok" for part in self.parts)

    @property
    def damage(self) -> tuple[str, ...]:
        """Everything that is wrong."""
        return tuple(sentence for part in self.parts for sentence in part.damage)


def check_file(path: Path, *, advance: Advance) -> Iterator[CheckedPart]:
    """Checks a shard, a gathered file, the extras of an index, or the partial file of an unfinished run.

    Args:
        path: The file.
        advance: Called while it is read.

    Yields:
        One part for a shard; for a gathered file first one for what belongs to no run, then one per run.

    Raises:
        NoChecksumsError: If the file carries no checksums at all.
    """
    start_s = time.monotonic()
    try:
        with open_file(path) as file:
            yield from _check_open_file(file, advance)
    except NoChecksumsError:
        raise
    except Unreachable as error:
        yield CheckedPart(path, None, 0, 0, time.monotonic() - start_s, (str(error),), unreachable=True)
    except RunError as error:
        num_bytes = path.stat().st_size if path.exists() else 0
        yield CheckedPart(path, None, 0, num_bytes, time.monotonic() - start_s, (str(error),))


def header_damage(path: Path, header: Header) -> list[str]:
    """Returns what is wrong with a header that can be parsed.

    Raises:
        NoChecksumsError: If the file carries no checksums at all.
    """
    if not header.flannel:
        raise NoChecksumsError(
            f"{path} carries no checksums, so there is nothing to verify it against: something else than "
            "flannel-pl wrote it, or the beginning of its header is damaged"
        )
    if not header.header_is_right:
        return ["its header is not as it was written"]
    parts = [] if is_extras(path) else parts_of(header)
    found = list(shared_problems(header, parts))
    return found + [sentence for part in parts for sentence in problems(header, part)]


def _check_open_file(file: TensorFile, advance: Advance) -> Iterator[CheckedPart]:
    start_s = time.monotonic()
    damage = header_damage(file.path, file.header)
    header_bytes = file.header.own_bytes
    if damage:
        yield CheckedPart(file.path, None, 0, header_bytes, time.monotonic() - start_s, tuple(damage))
        return
    advance(header_bytes)
    metadata = file.header.flannel
    if "runs" in metadata:
        names = metadata["static_checksums"]
        wrong = tuple(_not_as_written(name) for name in bad_static(file, names))
        wrong = wrong or tuple(experiment_problems(file))
        num_bytes = sum(file.header.tensors[name].num_bytes for name in names)
        advance(num_bytes)
        yield CheckedPart(file.path, None, 0, header_bytes + num_bytes, time.monotonic() - start_s, wrong)
    for part in [] if is_extras(file.path) else parts_of(file.header):
        yield _check_part(file, part, advance)


def _check_part(file: TensorFile, part: RunPart, advance: Advance) -> CheckedPart:
    start_s = time.monotonic()
    unfinished = is_partial(file.path)
    num_rows = part.num_rows
    if unfinished:
        written = num_leading_rows(file, part)
        bad = bad_cells(file, part, first=0, last=written, advance=advance)
        num_rows = bad[0][0] if bad else written
        damage = _static_damage(file, part)
    else:
        damage = part_damage(file, part, advance=advance)
    num_bytes = num_bytes_of(file.header, part) * num_rows // part.num_rows
    elapsed_s = time.monotonic() - start_s
    return CheckedPart(file.path, part.run, num_rows, num_bytes, elapsed_s, tuple(damage), unfinished)


def part_damage(file: TensorFile, part: RunPart, *, advance: Advance | None = None) -> list[str]:
    """Returns what of a finished run's tensors is not as their checksums say, a sentence each."""
    bad = bad_cells(file, part, first=0, last=part.num_rows, advance=advance)
    return _static_damage(file, part) + _sentences(bad, part)


def _static_damage(file: TensorFile, part: RunPart) -> list[str]:
    wrong = bad_static(file, part.metadata["static_checksums"], prefix=part.prefix)
    return [_not_as_written(name) for name in wrong] or list(token_problems(file, part))


def _not_as_written(name: str) -> str:
    return f"{name} is not as its checksum says"


def _sentences(bad: list[tuple[int, str]], part: RunPart) -> list[str]:
    """Returns one sentence per damaged column."""
    rows_of: dict[str, list[int]] = {}
    for row, name in bad:
        rows_of.setdefault(name, []).append(row)
    sentences = []
    for name, rows in rows_of.items():
        named = ", ".join(f"row {row} (step {part.step(row)})" for row in rows[:MAX_NAMED])
        more = f" and {len(rows) - MAX_NAMED} more rows" if len(rows) > MAX_NAMED else ""
        sentences.append(f"{_not_as_written(name)} in {named}{more}")
    return sentences


def describe_part(part: CheckedPart) -> list[str]:
    """Returns what `verify` prints of a part: one line, and what is wrong and what to do below it."""
    run = "" if part.run is None else f", run {part.run}"
    facts = [f"{part.num_rows} rows"] if part.run is not None else []
    if part.num_bytes:
        speed = part.num_bytes / max(part.elapsed_s, 1e-9) / 1e9
        facts.append(f"{readable_bytes(part.num_bytes)} at {speed:.2f} GB/s")
    head = f"{part.state:<10} {part.path}{run}{': ' if facts else ''}{', '.join(facts)}"
    return [head, *(f"           {sentence}" for sentence in (*part.damage, *_advice(part)))]


def _advice(part: CheckedPart) -> Iterator[str]:
    """Yields what to do about a part that is not right."""
    if part.unreachable or part.foreign:
        return
    if is_growing(part.path):
        lost = "copies that run again, or records it again" if part.damage else "goes on with the others"
        yield f"that file gets its name when every run is in it; flannel-pl fit {lost}"
    elif part.unfinished:
        yield how_it_goes_on(part.path)
    elif part.damage and part.path.exists() and is_finished_file(part.path):
        folder = ExperimentPaths.find(part.path.parent.absolute())
        if part.path.name == RunPaths(folder.folder).recording.name:
            yield "delete it and run flannel-pl fit again: it records this run again, unless that is gathered"
        elif part.path.name == folder.masks.name:
            yield "bring it back from where the experiment's masks came from"
        elif part.run is None or folder.run(part.run).recording.exists():
            again = f"flannel-pl gather {shlex.quote(str(folder.folder))}"
            yield f"gather again, if the runs' own recordings are right: {again}"
        else:
            yield (
                f"run {part.run} has no recording of its own any more: bring the file back from a copy; if "
                f"there is none, record that run alone in another folder, with {folder.run(part.run).config}"
            )


def summarize_findings(findings: Findings, *, elapsed_s: float) -> str:
    """Returns the last line that `verify` prints."""
    num_bytes = sum(part.num_bytes for part in findings.parts)
    speed = num_bytes / max(elapsed_s, 1e-9) / 1e9
    states = [part.state for part in findings.parts]
    if findings.ok:
        verdict = "every row is there, and every bit as it was written"
    else:
        bad = [state for state in ("damaged", "missing", "unreachable", "unfinished") if state in states]
        counts = [f"{states.count(state)} {state}" for state in bad]
        verdict = f"{' and '.join(counts)}, {states.count('ok')} ok"
    return f"{verdict} ({readable_bytes(num_bytes)} in {elapsed_s:.1f} s, {speed:.2f} GB/s)"
