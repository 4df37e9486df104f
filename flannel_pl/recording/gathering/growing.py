"""The growing file and its notes, which belong together and to one process at a time."""

from collections.abc import Callable
from pathlib import Path

from flannel_pl.errors import RunError, Unreachable
from flannel_pl.paths import ExperimentPaths, partial_of
from flannel_pl.recording.belonging import copy_contradictions
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.experiment_tensors import Extras
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.safetensors.layout import FileLayout
from flannel_pl.recording.gathering.copying import OwnFile, make_growing_file
from flannel_pl.recording.gathering.gathered import refuse_loss, refuse_lost_notes
from flannel_pl.recording.gathering.notes import GatherNotes
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.held import check_held
from flannel_pl.small_files import read_small


class Growing:
    """A growing file with its notes; make one with `begin` or `take_over`.

    Attributes:
        notes: What is known of it.
        layout: Where everything lies in it, which never changes.
    """

    def __init__(
        self, paths: ExperimentPaths, notes: GatherNotes, layout: FileLayout, *, own: OwnFile
    ) -> None:
        self.notes, self.layout = notes, layout
        self._paths, self._own = paths, own
        self._noted = b""  # the notes as they were last seen on the disk

    @classmethod
    def begin(cls, paths: ExperimentPaths, notes: GatherNotes, extras: Extras) -> "Growing":
        """Makes the file and writes its notes.

        Raises:
            RunError: If another process has made it, or the disk fails.
        """
        if paths.growing.exists():  # which was not there before, or was another's and was taken over
            raise RunError(
                f"{paths.growing} was made by another process, which is gathering too. See to it that "
                "only one does, then gather again."
            )
        own, layout = None, notes.layout(extras)
        try:
            make_growing_file(paths.growing, layout)
            own = OwnFile(paths.growing)
            growing = cls(paths, notes, layout, own=own)
            growing._write_notes()
        except BaseException:
            remove_leftovers(paths, own)
            raise
        return growing

    @classmethod
    def take_over(
        cls, paths: ExperimentPaths, record: ExperimentRecord, extras: Callable[[], Extras]
    ) -> "Growing | None":
        """Returns what an earlier process has left; None if there is nothing to go by.

        Args:
            paths: The experiment's files.
            record: Its record.
            extras: Returns its tensors; only called if there is something.

        Raises:
            Unreachable: If it cannot be read.
            RunError: If it is damaged, or another experiment's, and something may be lost by beginning anew.
        """
        if not is_there(paths.growing):
            return None
        own = OwnFile(paths.growing)
        try:
            notes = GatherNotes.read(paths.growing_notes)
        except Unreachable:
            raise
        except RunError as damage:
            refuse_loss(damage, paths, record, record.indices)
            return None
        if notes is None:
            refuse_lost_notes(paths, record)
            return None
        for index, metadata in notes.runs.items():
            if index not in record.indices or [*copy_contradictions(metadata, record, index)]:
                raise RunError(
                    f"{paths.growing} has a run {index} that is not this experiment's. Either it or "
                    f"{paths.record.name} was brought from elsewhere: bring back the one that belongs "
                    "here."
                )
        size = paths.growing.stat().st_size
        if len(notes.specs) == len(record.indices):
            growing = cls(paths, notes, notes.layout(extras()), own=own)
            if size == growing.layout.total_bytes:
                growing._noted = read_small(paths.growing_notes)
                growing.check()
                return growing
        error = RunError(f"{paths.growing} has not the size that {paths.growing_notes.name} asks for")
        refuse_loss(error, paths, record, list(notes.runs))
        return None

    def check(self) -> OwnFile:
        """Refuses to go on once another process has gathered into the same file, or has replaced it.

        Raises:
            RunError: If one has, although its lock should have kept it from that.
        """
        self._own.check()
        try:
            is_own = read_small(self._paths.growing_notes) == self._noted
        except OSError:
            is_own = False
        if not is_own:
            raise RunError(
                f"{self._paths.growing_notes} was changed by another process, which is gathering too. See to "
                "it that only one does, then gather again."
            )
        return self._own

    def write_notes(self) -> None:
        """Replaces the notes on the disk, if they and the file are still this process's own.

        Raises:
            RunError: If they are not, or the disk fails.
        """
        self.check()
        self._write_notes()

    def remove(self) -> None:
        """Removes what is there of gathering, unless it is another process's."""
        remove_leftovers(self._paths, self._own)

    def _write_notes(self) -> None:
        self.notes.write(self._paths.growing_notes)
        self._noted = read_small(self._paths.growing_notes)


def remove_leftovers(paths: ExperimentPaths, own: OwnFile | None = None) -> None:
    """Removes what is there of gathering, besides the finished file.

    Args:
        paths: The experiment's files.
        own: The growing file that was made or taken over, if one was. Any other is another process's, and so
            are the notes.

    Raises:
        RunError: If the disk refuses.
    """
    check_held(paths.growing)
    if own is not None and paths.growing.exists() and not own.is_there:
        return
    # The notes last: without them nobody would know what the growing file holds.
    notes = paths.growing_notes
    left: list[Path] = [paths.growing_moved, paths.growing, partial_of(notes), notes]
    for path in left:
        with explained(path, need_bytes=0):
            path.unlink(missing_ok=True)
