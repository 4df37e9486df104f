"""An experiment that is in its folder: what it is, how far it is, and what it has recorded."""

from pathlib import Path
from typing import Any, Literal

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.display import overall, status_table
from flannel_pl.launch.standing import ExperimentStatus
from flannel_pl.launch.status import read_status
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.reader import AskedFramework, Recording, open_recording
from flannel_pl.terminal import NOTEBOOK_WIDTH, as_html


class Experiment:
    """An experiment in its folder; `flannel_pl.fit` returns one, and any folder can be opened.

    Args:
        folder: The experiment's folder, or any file or recording in it.

    Attributes:
        name: Its name.
        folder: Where it is.
        seeds: The seed of each run, in the order of their numbers.
        config: The config that it was begun with, as nested dicts.

    Raises:
        UserError: If there is no experiment.
        RunError: If its `experiment.json` cannot be read.

    Example:
        >>> experiment = Experiment("runs/flannel3")  # doctest: +SKIP
        >>> experiment.recording().run(0).embeddings[-1]  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path | Recording) -> None:
        given = Path(folder.path if isinstance(folder, Recording) else folder).absolute()
        places = (given, *given.parents[:2])
        around = (place for place in places if ExperimentPaths(place, "").record.exists())
        paths = ExperimentPaths.find(next(around, given))
        record = read_record(paths)
        self.name, self.folder = record.name, paths.folder
        self.config: dict[str, Any] = record.settings.content
        self.seeds = tuple(run.seed for run in record.runs)

    def status(self) -> ExperimentStatus:
        """Returns how far every run is."""
        return read_status(self.folder)

    def recording(self, *, framework: AskedFramework = "np", unfinished: bool = False) -> Recording:
        """Opens what is recorded: the gathered file, or the runs that are finished.

        Args:
            framework: See `open_recording`.
            unfinished: See `open_recording`; of a run's folder only.

        Raises:
            UserError: If no run is finished.
            RunError: If a file cannot be read or is damaged.
        """
        return open_recording(self.folder, framework=framework, unfinished=unfinished)

    def run(self, index: int, *, framework: AskedFramework = "np") -> Any:
        """Returns the recording of run `index`; of one that is still trained, the rows that are safe.

        Raises:
            UserError: If it has no row yet.
            IndexError: If there is no such run.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has no run {index}; it has {len(self)} runs, counted from 0")
        folder = ExperimentPaths.find(self.folder).run(index).folder
        is_gathered = not any(folder.glob("recording.*"))  # its shard may have been dropped
        path = self.folder if is_gathered else folder
        return open_recording(path, framework=framework, unfinished=not is_gathered).run(index)

    def verify(self) -> Any:
        """Checks every row of every run; see `flannel_pl.verify`."""
        from flannel_pl.recording.checking.verify import verify

        return verify(self.folder)

    def gather(self, *, mode: Literal["single", "index"] | None = None) -> Path:
        """Gathers the recordings (again); see `flannel_pl.gather`."""
        from flannel_pl.recording.gathering.gather import gather

        return gather(self.folder, mode=mode)

    def report(self, **options: Any) -> Any:
        """Measures and draws; see `flannel_pl.report`."""
        from flannel_pl.analysis.reporting.report import report

        return report(self.folder, **options)

    def compare(self, other: "str | Path | Experiment", **options: Any) -> Any:
        """Compares with another recording, to the bit; see `flannel_pl.compare`."""
        from flannel_pl.analysis.comparing.compare import compare

        return compare(self.folder, other.folder if isinstance(other, Experiment) else other, **options)

    def __len__(self) -> int:
        """Returns the number of runs."""
        return len(self.seeds)

    def __repr__(self) -> str:
        """Says where it is and how far."""
        return f"Experiment({self.folder}: {overall(self.status())})"

    def _repr_html_(self) -> str:
        table = status_table(self.status(), width=NOTEBOOK_WIDTH)
        return f"<strong>Experiment {self.name}</strong>{as_html(table)}"


def status(folder: str | Path) -> ExperimentStatus:
    """Reads how far an experiment is; changes nothing there.

    Args:
        folder: The experiment's folder.

    Raises:
        UserError: If it holds no experiment.
        RunError: If its `experiment.json` cannot be read.
    """
    return read_status(Path(folder))
