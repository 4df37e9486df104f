"""Which run is trained where: slots, threads, and whether memory and disk can hold it all."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.launch.launcher import Capacity, find_launcher
from flannel_pl.launch.memory import Memory, gb, memory_of
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.writing.space import free_bytes


@dataclass(frozen=True)
class Plan:
    """What `fit` is going to do."""

    runs: tuple[Run, ...]
    """Runs still to be trained."""

    capacity: Capacity
    """Where."""

    most_at_once: int
    """How many runs may be in their own file and in the gathered one at the same time."""

    largest_bytes: int
    """Size of the largest shard of the experiment."""

    recording_bytes: int
    """Bytes of the shards still to be written."""

    gathered_bytes: int
    """Bytes of the gathered file; 0 if nothing is copied."""

    keeps_shards: bool
    """Whether the runs' own files stay beside the gathered one."""

    free_bytes: int | None
    """Free on the disk, counting what unfinished recordings of these runs take up now."""

    memory: Memory
    """What the runs take of the host's memory and of the devices', and how much of it is free."""

    short: tuple[str, ...] = ()
    """What there is too little of for that, a sentence each."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where runs are trained side by side; at least one."""
        return self.capacity.slots

    @property
    def settled(self) -> dict[str, Any]:
        """What `auto` came to where bits may depend on it; part of `experiment.json`."""
        return {"accelerator": self.slots[0].accelerator, "threads_per_run": self.slots[0].threads}


def make_plan(
    experiment: ResolvedExperiment,
    runs: Sequence[Run],
    *,
    bytes_of: Mapping[int, int],
    record: ExperimentRecord | None,
    may_be_short: bool = False,
) -> Plan:
    """Assigns the runs to slots and checks that devices, memory and disk are there.

    Args:
        experiment: The experiment.
        runs: Those of its runs that are still to be trained.
        bytes_of: Run number -> size of its shard, of every selected run.
        record: What the folder's `experiment.json` says, whose number of threads `auto` then means.
        may_be_short: Whether the plan only says so if memory or disk are too small.

    Raises:
        UserError: If a device is not there, a number is out of range, or memory or disk are too small.
    """
    settings = experiment.config.experiment
    copies = settings.gather == "single" and settings.run is None
    launcher = find_launcher(experiment)
    capacity = launcher.capacity(num_runs=max(1, len(runs)), record=record)
    plan = Plan(
        runs=tuple(runs),
        capacity=capacity,
        # What outlives us gathers when all are done, one after the other.
        most_at_once=1 if launcher.outlives else len(capacity.slots),
        largest_bytes=max(bytes_of.values()),
        recording_bytes=sum(bytes_of[run.index] for run in runs),
        gathered_bytes=sum(bytes_of.values()) if copies else 0,
        keeps_shards=settings.keep_shards,
        free_bytes=_free_bytes(experiment, runs),
        memory=capacity.memory or memory_of(experiment, accelerator=capacity.slots[0].accelerator),
    )
    plan = replace(plan, short=(*capacity.short, *_short_of_disk(plan, experiment)))
    if plan.short and not may_be_short:
        raise UserError(plan.short[0])
    return plan


def describe_plan(experiment: ResolvedExperiment, plan: Plan) -> str:
    """Returns the plan as text for a person."""
    done = len(experiment.selected) - len(plan.runs)
    names = Counter(slot.name for slot in plan.slots)
    slots = ", ".join(f"{name} x {count}" for name, count in names.items())
    if plan.capacity.elsewhere:
        slots = f"{find_launcher(experiment).title} tasks with {slots}"
    cores = plan.capacity.cores
    return "\n".join(
        (
            f"experiment  {experiment.paths.folder}",
            f"runs        {len(plan.runs)} to train, {done} finished",
            f"devices     {slots} runs side by side, {plan.slots[0].threads} thread(s) each",
            f"recordings  {gb(plan.largest_bytes)} a run, {gb(plan.recording_bytes)} still to write",
            f"gathered    {gb(plan.gathered_bytes)} to copy"
            if plan.gathered_bytes
            else "gathered    nothing to copy",
            f"disk        {'unknown' if plan.free_bytes is None else gb(plan.free_bytes)} free",
            *([f"cores       {cores.amount:g} ({cores.source})"] if cores else []),
            f"memory      {plan.memory.describe()}",
        )
    )


def _free_bytes(experiment: ResolvedExperiment, runs: Sequence[Run]) -> int | None:
    """Returns the free bytes where the experiment's folder is, or will be made; None if that is unknown."""
    folder = experiment.paths.folder
    while not folder.exists():
        folder = folder.parent
    partials = [experiment.paths.run(run.index).partial for run in runs]
    reused = sum(partial.stat().st_blocks * 512 for partial in partials if partial.exists())
    free = free_bytes(folder)
    return None if free is None else free + reused


def _short_of_disk(plan: Plan, experiment: ResolvedExperiment) -> Iterator[str]:
    need = plan.recording_bytes
    if plan.gathered_bytes and not experiment.paths.gathered.exists():
        # Without the shards there is one run at a time that takes its place twice, and those still training.
        need += plan.gathered_bytes if plan.keeps_shards else plan.most_at_once * plan.largest_bytes
    if plan.free_bytes is None or need <= plan.free_bytes:
        return
    parts, cheaper = f"{gb(plan.recording_bytes)} of recordings", ""
    if need > plan.recording_bytes:
        parts += f" and {gb(need - plan.recording_bytes)} to gather them in one file"
        cheaper = f"--experiment.gather index ({gb(plan.recording_bytes)}), --experiment.keep_shards false, "
    yield (
        f"not enough free disk for {experiment.paths.folder}: need {gb(need)} ({parts}), have "
        f"{gb(plan.free_bytes)}; need less with {cheaper}fewer --recorder.tensors, --recorder.tokens dead, "
        "a larger --recorder.every_n_steps, fewer seeds or steps, or choose another --experiment.output_dir"
    )
