"""What the launcher room asks of a launcher: the one thing that a further one has to be.

There are two kinds. Jobs of the first end with the command that started them: the room has them wait for a
free slot, starts a run that failed again, on another device if there is one, and stops them on a signal, see
`attended.py`. Jobs of the second outlive it: all of them are handed over at once, each starts its run again
by itself, and the same command finds them again, see `unattended.py`. Gathering, events, status and the
summary are the room's in both cases.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.launch.cgroups import Limit
from flannel_pl.launch.memory import Memory
from flannel_pl.plugins import launchers
from flannel_pl.recording.experiment_record import ExperimentRecord

JOB_SCRIPT = Path(__file__).with_name("job.sh")

Work = Callable[[ResolvedExperiment, Run, Slot, int, Callable[..., None]], None]
"""Trains one run in a process of its own: experiment, run, slot, attempt, and what it tells events to."""


@dataclass(frozen=True)
class Task:
    """One thing that a job does: it trains a run, or gathers."""

    run: Run | None
    """None: it gathers."""

    slot: Slot
    """What it gets."""

    log: Path
    """Where what it prints belongs; a run whose jobs do not outlive us sees to that itself."""

    command: tuple[str, ...] = ()
    """What does it once, in a process of its own, anywhere; of a run the last word is its number."""

    retries: int = 0
    """How often the job starts the command again by itself."""

    after: tuple[str, ...] = ()
    """Jobs that have to have ended before, well or not."""

    attempt: int = 1
    """How often the run is started, this time included, as far as the room knows."""

    work: Work | None = None
    """Does the same as `command`, for a launcher of this host that has `multiprocessing` start processes."""

    note: Callable[..., None] | None = None
    """Told by `work` what happens."""

    @property
    def name(self) -> str:
        """What it does, for a person."""
        return "gathering" if self.run is None else f"run {self.run.index}"

    @property
    def job(self) -> list[str]:
        """The command of a job that outlives us: it goes on after a failure, and says so if it gives up."""
        return ["bash", str(JOB_SCRIPT), str(self.retries), *self.command]


@dataclass(frozen=True)
class JobState:
    """What a launcher says of a job."""

    phase: Literal["waiting", "running", "done", "failed", "stopped"]
    """`failed` may have ended without a word; `stopped` is what somebody wanted."""

    words: str = ""
    """Of a job that waits: what for, if that needs explanation. Of one that has ended: how."""

    exit_code: int | None = None
    """Of its process, if that is known; of a signal the negative number."""

    pid: int | None = None
    """Its process, if it has one on this host."""

    @property
    def is_active(self) -> bool:
        """Whether it is still going to do something."""
        return self.phase in ("waiting", "running")


@dataclass(frozen=True)
class Capacity:
    """What there is for the runs of an experiment."""

    slots: tuple[Slot, ...]
    """Where runs are trained side by side; at least one."""

    queues: bool = False
    """Whether jobs that there is no slot for may be handed over as well. Else the room has each wait for the
    job whose slot it gets."""

    elsewhere: bool = False
    """Whether it is on other hosts than this one."""

    memory: Memory | None = None
    """What the runs take of the memory, and how much is free; None: nothing is known of what is free."""

    cores: Limit | None = None
    """Cores of this host for all runs together, if it is this host."""

    short: tuple[str, ...] = ()
    """What there is too little of, a sentence each: then nothing can be trained."""


class Launcher(ABC):
    """Starts jobs, says how they are, and stops them. The room does the rest.

    A further one is a class of this kind behind an entry point of the group `flannel_pl.launchers`, whose
    name is the value of `launch.launcher` that means it.

    Args:
        name: Its name.
        experiment: What it is to start the runs of.
    """

    outlives: ClassVar[bool] = False
    """Whether jobs go on when the command that started them is gone."""

    alone_here: ClassVar[bool] = False
    """Whether an experiment of one run is trained in the command's own process instead."""

    settings: ClassVar[type | None] = None
    """Dataclass of the keys `launch.<name>.*`; importing it imports nothing heavy."""

    title: ClassVar[str] = "the launcher"
    """What jobs are with, in messages."""

    query_s: ClassVar[float] = 5.0
    """Time between two looks at jobs that outlive us."""

    def __init__(self, name: str, experiment: ResolvedExperiment) -> None:
        self.name, self.experiment = name, experiment
        keys = experiment.config.launchers.get(name, {})
        self.own: Any = None if self.settings is None else self.settings(**keys)

    def check(self) -> None:  # noqa: B027 - most can be used everywhere
        """Refuses to go on where it cannot be used.

        Raises:
            UserError: If what it needs is not there.
        """

    @abstractmethod
    def capacity(self, *, num_runs: int, record: ExperimentRecord | None) -> Capacity:
        """Returns what there is for so many runs.

        Args:
            num_runs: Runs that are to be trained, at least 1.
            record: What the folder's `experiment.json` says, whose number of threads `auto` then means.

        Raises:
            UserError: If a key asks for what is not there.
        """

    @abstractmethod
    def start(self, tasks: Sequence[Task]) -> Sequence[str]:
        """Starts jobs of the first of `tasks`, one at least, and returns their names.

        It is asked again for the rest, once these are noted. Names are one per job, unique among those that
        have not ended, and as people know them where they have to look for a job themselves.

        Raises:
            UserError: If a job is refused.
            RunError: If that is nobody's mistake.
        """

    @abstractmethod
    def look(self, jobs: Sequence[str], *, wait_s: float = 0.0) -> Mapping[str, JobState]:
        """Returns the state of jobs; without those of which nothing is known any more.

        Args:
            jobs: Their names.
            wait_s: How long to wait for one of them to end, if that can be done without looking all the time.

        Raises:
            RunError: If nobody answers.
        """

    @abstractmethod
    def stop(self, jobs: Sequence[str], *, now: bool) -> None:
        """Ends all jobs of the experiment; those that have ended already are no mistake.

        Args:
            jobs: Their names, as far as they are known.
            now: Whether to end them at once, instead of after their step. Then all have ended on return, or
                will do no more.

        Raises:
            RunError: If nobody answers.
        """

    # Further questions about jobs that outlive us.

    def stop_command(self, jobs: Sequence[str]) -> str:
        """Returns the command with which a person stops jobs, with a checkpoint each."""
        raise NotImplementedError

    def short(self, jobs: Sequence[str]) -> list[str]:
        """Returns names of jobs as a person is told them."""
        return list(jobs)

    def describe(self, jobs: Sequence[str]) -> str:
        """Returns what the jobs of runs are called together."""
        return f"{len(jobs)} job(s), {' '.join(self.short(jobs))}"

    def why_silent(self) -> str:
        """Returns why jobs cannot be asked for from here; empty if they can."""
        return ""

    def is_inside(self, jobs: Sequence[str]) -> bool:
        """Tells whether this process is one of jobs, if that is known in other ways than the room's."""
        return False

    def adjust(self, jobs: Sequence[str], changes: Mapping[str, tuple[Any, Any]]) -> set[str]:
        """Brings jobs in line with what is asked for now.

        Args:
            jobs: Of the runs.
            changes: Dotted key -> what they were started with, and what is asked for now.

        Returns:
            The keys that cannot be changed any more. If there are any, nothing is changed.
        """
        return set(changes)


def threads_per_run(config: Config, record: ExperimentRecord | None, *, auto: int) -> int:
    """Returns the CPU threads of a run, on which bits depend.

    Args:
        config: The experiment's config.
        record: What the folder's `experiment.json` says; `auto` means what it meant there.
        auto: What it means in a new experiment.

    Raises:
        UserError: If there would be none.
    """
    threads = config.launch.threads_per_run
    if threads == "auto":
        return (record and record.threads_per_run) or auto
    if threads < 1:
        raise UserError(f"launch.threads_per_run is {threads}, expected at least 1 or auto")
    return int(threads)


def find_launcher(experiment: ResolvedExperiment, name: str | None = None) -> Launcher:
    """Returns a launcher of an experiment.

    Args:
        experiment: The experiment.
        name: Which; None = what its config asks for.

    Raises:
        UserError: If there is none of that name, or it cannot be loaded.
    """
    name = experiment.config.launch.launcher if name is None else name
    point = launchers().get(name)
    if point is None:
        raise UserError(
            f"launch.launcher is {name}, expected one of {', '.join(launchers())}; others are installed with "
            "the package that brings them"
        )
    try:
        kind: type[Launcher] = point.load()
        return kind(name, experiment)
    except Exception as error:
        raise UserError(
            f"launch.launcher is {name}, which cannot be loaded from {point.value}: {error}; mend that "
            "package, or choose another launcher"
        ) from error
