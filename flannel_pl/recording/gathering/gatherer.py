"""Gathers runs into one file as they finish, while others still train.

The file grows under a `.partial` name. Its layout is planned when the first run is there: all runs have the
same tensors as a rule, and for the header, which needs what every run says of itself, room is left. A run
that is copied, synced and checked against its checksums goes into the notes (`notes.py`); from then on
its own recording may be deleted. A crash at any moment loses nothing: what the notes do not name is copied
again, and the final name is given only to the complete file.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import ExperimentPaths
from flannel_pl.publish import sync_folder
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.recording.experiment_tensors import Extras, experiment_tensors
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.files import open_file, read_header
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.safetensors.layout import FileLayout
from flannel_pl.recording.formats.safetensors.shard import is_shortened
from flannel_pl.recording.gathering.contents import Shard, read_shard, run_metadata
from flannel_pl.recording.gathering.copying import (
    OwnFile,
    complete,
    copy_damage,
    copy_tensors,
    make_growing_file,
    synced,
)
from flannel_pl.recording.gathering.gathered import is_complete
from flannel_pl.recording.gathering.growing import Growing, remove_leftovers
from flannel_pl.recording.gathering.notes import (
    GatherNotes,
    final_layout,
    plan_notes,
    specs_of,
)
from flannel_pl.recording.integrity.expected import problems
from flannel_pl.recording.integrity.findings import Advance, header_damage, part_damage
from flannel_pl.recording.integrity.parts import parts_of
from flannel_pl.recording.writing.disk import explained, readable_bytes
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.space import free_bytes


class Gatherer:
    """Copies finished runs into an experiment's gathered file, one by one, in any order.

    Only one process at a time may gather an experiment. With `experiment.keep_shards` false a run's own
    recording is deleted as soon as it is safe in the gathered file, so that at most one run takes its place
    twice. After a crash, or an exception, a new Gatherer goes on where the last one was.

    Args:
        folder: The experiment's folder, with `experiment.json` and the masks.
        record: The experiment's record, if it is at hand.

    Raises:
        UserError: If it is no experiment's folder.
        RunError: If what an earlier Gatherer left is damaged.

    Example:
        >>> gatherer = Gatherer("runs/flannel3")        # doctest: +SKIP
        >>> for index in finished_runs:                 # doctest: +SKIP
        ...     gatherer.add(index)
        >>> gatherer.finish()                           # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, record: ExperimentRecord | None = None) -> None:
        self.paths = ExperimentPaths.find(Path(folder).absolute())
        self.record = read_record(self.paths) if record is None else record
        self.keep_shards = self.record.keeps_shards
        self._indices = self.record.indices
        self._checked: set[int] = set()  # runs that this object has found right in the growing file
        self._apart: dict[int, Shard] = {}  # runs that do not fit the plan and wait for `finish`
        self._growing = self._take_over()

    @property
    def gathered(self) -> frozenset[int]:
        """Runs that are safe in the gathered file, finished or growing."""
        if self._growing is not None:
            return frozenset(self._growing.notes.runs)
        return frozenset(self._indices if self.is_finished else ())

    @property
    def is_finished(self) -> bool:
        """Whether the gathered file is there with every run, and nothing is under way to replace it."""
        return self._growing is None and is_complete(self.paths, self.record)

    @property
    def waiting(self) -> list[int]:
        """Runs that are finished but not in the gathered file yet."""
        gathered = self.gathered
        return [index for index in self._indices if index not in gathered and self._has_shard(index)]

    @property
    def total_bytes(self) -> int:
        """Size of the growing file; 0 before the first run was added."""
        return 0 if self._growing is None else self._growing.layout.total_bytes

    def check_missing(self) -> None:
        """Refuses to go on without a run.

        Raises:
            RunError: Names the runs that are neither finished nor gathered.
        """
        gathered = self.gathered
        missing = [i for i in self._indices if i not in gathered and not self._has_shard(i)]
        if missing:
            raise RunError(
                f"{self.paths.folder} has no finished recording of run {', '.join(map(str, missing))} "
                f"({len(missing)} of {len(self._indices)} runs). "
                "Run flannel-pl fit again to finish them, then gather."
            )

    def check_space(self) -> None:
        """Refuses a disk that cannot hold the finished runs a second time; only the largest, if shards go.

        Raises:
            UserError: Says what is needed and what is there.
        """
        copied = {} if self._growing is None else self._growing.notes.runs
        waiting = [i for i in self._indices if i not in copied and self._has_shard(i)]
        sizes = [read_header(self.paths.run(i).recording).used_bytes for i in waiting]
        self._refuse_small_disk(sum(sizes) if self.keep_shards else max(sizes, default=0))

    def add(self, run_index: int, *, advance: Advance | None = None) -> None:
        """Copies a finished run, makes the copy durable and checks it; then drops its shard, if configured.

        Args:
            run_index: Number of the run. The copy of one that is gathered already is checked once more.
            advance: Called with the size of each piece that is copied, and with 0 while the copy is checked.
                What it raises ends the copying; nothing is lost by that.

        Raises:
            UserError: If the disk is too small.
            RunError: If the run is not finished, is damaged or belongs to another experiment, the masks are
                missing, or the disk fails; if its copy is damaged and its shard is gone, it has to be
                recorded again.
        """
        if self.is_finished and not self._has_shard(run_index):
            return
        advance = advance or (lambda num_bytes: None)
        growing = self._growing
        if growing is not None and self._is_right(growing, run_index, advance):
            advance(sum(spec.num_bytes for spec in growing.notes.taken(run_index).values()))
        else:
            growing = self._copy(run_index, advance)
        if run_index not in self._apart:
            growing.check()
            self._drop_shard(run_index)

    def finish(self, *, advance: Advance | None = None) -> Path:
        """Writes the header and gives the file its name; does nothing if that is done.

        Args:
            advance: Called with the size of each piece that is written.

        Returns:
            The gathered file.

        Raises:
            UserError: If the disk is too small.
            RunError: If runs or the masks are missing or damaged, or the disk fails.
        """
        if self.is_finished:
            self._drop_what_is_in_the_finished_file()
            return self.paths.gathered
        advance = advance or (lambda num_bytes: None)
        self.check_missing()
        for index in self._indices:
            if index not in self._checked and index not in self._apart:
                self.add(index, advance=advance)
        growing = self._growing
        assert growing is not None
        layout = final_layout(growing.notes, self.record, self._extras, apart=self._apart)
        own = growing.check()
        if layout.offsets != growing.layout.offsets:
            own = self._rearrange(growing.notes, layout, advance)
            growing.check()
        complete(own, layout, extras=self._extras, final=self.paths.gathered, advance=advance)
        for index in self._apart:
            self._drop_shard(index)
        growing.remove()
        self._growing = None
        return self.paths.gathered

    def abandon(self) -> None:
        """Deletes this object's growing file, unless it has the only copy of a run."""
        growing = self._growing
        if growing is not None and all(self._has_shard(index) for index in growing.notes.runs):
            growing.remove()
            self._growing = None

    def _take_over(self) -> Growing | None:
        """Returns what an earlier Gatherer left, to go on with; None to begin anew, or if all is finished."""
        growing = Growing.take_over(self.paths, self.record, lambda: self._extras)
        if growing is None:
            remove_leftovers(self.paths)
        elif is_complete(self.paths, self.record):
            # The last act was cut off, or a finished file is being replaced. Either way the finished file
            # counts, if it is right where nothing else is left.
            lost = [index for index in growing.notes.runs if not self._has_shard(index)]
            if not any(self._damage_in_finished_file(index) for index in lost):
                growing.remove()
                return None
        return growing

    @functools.cached_property
    def _extras(self) -> Extras:
        """The tensors that belong to no run. Read when they are needed: a finished file needs no masks."""
        return experiment_tensors(self.paths, self.record)

    def _has_shard(self, index: int) -> bool:
        return is_there(self.paths.run(index).recording)

    def _is_right(self, growing: Growing, index: int, advance: Advance) -> bool:
        """Tells whether a run's copy is there and right; forgets it if it is not."""
        if index not in growing.notes.runs:
            return False
        if index in self._checked:
            return True
        damage = self._copy_damage(growing.layout, index, growing.notes.runs[index], advance)
        if not damage:
            self._checked.add(index)
            return True
        growing.check()
        del growing.notes.runs[index]
        growing.write_notes()
        if not self._has_shard(index):
            raise RunError(
                f"{self.paths.growing} is damaged where run {index} is ({damage[0]}), and there is no other "
                f"copy. Run flannel-pl fit again: it records run {index} again."
            )
        return False

    def _copy_damage(
        self, layout: FileLayout, index: int, metadata: Mapping[str, Any], advance: Advance
    ) -> list[str]:
        """Checks a copy in the growing file; `advance` may end that, and counts nothing twice."""
        return copy_damage(self.paths.growing, layout, index, metadata, advance=lambda num_bytes: advance(0))

    def _damage_in_finished_file(self, index: int) -> list[str]:
        with open_file(self.paths.gathered) as file:
            part = next(part for part in parts_of(file.header) if part.run == index)
            return [*problems(file.header, part)] or part_damage(file, part)

    def _copy(self, index: int, advance: Advance) -> Growing:
        """Copies a shard into the growing file and notes that it is safe there; or sets it apart."""
        shard = read_shard(self.paths, self.record, index)
        if damage := header_damage(shard.path, shard.layout):
            raise RunError(
                f"{shard.path} is damaged: {damage[0]}. Delete it and run flannel-pl fit again: it records "
                f"run {index} again."
            )
        growing = self._growing = self._growing or self._begin()
        notes, layout = growing.notes, growing.layout
        if not is_shortened(specs_of(shard), notes.specs[index]):
            self._apart[index] = shard
            return growing
        self._refuse_small_disk(shard.layout.used_bytes)
        growing.check()
        copy_tensors(shard.path, shard.layout, self.paths.growing, layout, keys=shard.keys, advance=advance)
        with synced(self.paths.growing):
            damage = self._copy_damage(layout, index, shard.layout.flannel, advance)
        if damage:
            raise _bad_copy(index, damage, shard.path)
        notes.runs[index] = run_metadata(shard)
        growing.write_notes()
        self._checked.add(index)
        return growing

    def _begin(self) -> Growing:
        """Plans the file by the runs that are finished, and makes it."""
        shards = [read_shard(self.paths, self.record, i) for i in self._indices if self._has_shard(i)]
        return Growing.begin(self.paths, plan_notes(self.record, self._extras, shards), self._extras)

    def _rearrange(self, notes: GatherNotes, layout: FileLayout, advance: Advance) -> OwnFile:
        """Makes the file anew with another layout, from the growing one and the runs set apart."""
        self._refuse_small_disk(layout.total_bytes)
        make_growing_file(self.paths.growing_moved, layout)
        own = OwnFile(self.paths.growing_moved)
        planned = notes.layout(self._extras, taken=True)
        for index, metadata in enumerate(layout.flannel["runs"]):
            if shard := self._apart.get(index):
                source, source_layout, keys = shard.path, shard.layout, shard.keys
            else:
                source, source_layout = self.paths.growing, planned
                keys = {key: key for key in (run_prefix(index) + name for name in notes.specs[index])}
            copy_tensors(source, source_layout, self.paths.growing_moved, layout, keys=keys, advance=advance)
            with synced(self.paths.growing_moved):
                damage = copy_damage(self.paths.growing_moved, layout, index, metadata)
            if damage:
                raise _bad_copy(index, damage, source)
        return own

    def _refuse_small_disk(self, need_bytes: int) -> None:
        have_bytes = free_bytes(self.paths.folder)
        if have_bytes is not None and need_bytes > have_bytes:
            raise UserError(
                f"Cannot gather into {self.paths.gathered}: need {readable_bytes(need_bytes)}, "
                f"have {readable_bytes(have_bytes)} free. Free some space, move the experiment to another "
                "disk, or train with experiment.gather index, which copies nothing."
            )

    def _drop_shard(self, index: int) -> None:
        path = self.paths.run(index).recording
        if not self.keep_shards and path.exists():
            check_held(path)
            with explained(path, need_bytes=0):
                path.unlink()
                sync_folder(path.parent)

    def _drop_what_is_in_the_finished_file(self) -> None:
        """Drops shards that a crash at the very end left."""
        for index in [] if self.keep_shards else self._indices:
            if self._has_shard(index) and not self._damage_in_finished_file(index):
                self._drop_shard(index)


def _bad_copy(index: int, damage: list[str], source: Path) -> RunError:
    return RunError(
        f"the copy of run {index} is wrong: {damage[0]}. If flannel-pl verify finds the same in {source}, "
        "delete that and run flannel-pl fit again; if not, check the disk and gather again."
    )
