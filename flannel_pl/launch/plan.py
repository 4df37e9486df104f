"""Which run is trained where: slots, threads, and whether memory and disk can hold it all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flannel_pl.errors import UserError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.launch.cgroups import Limit
from flannel_pl.launch.devices import available_cores, chosen_devices, free_device_memory, free_memory
from flannel_pl.launch.fork_server import fork_server_bytes, start_method
from flannel_pl.launch.memory import Memory, device_need, gb, host_need
from flannel_pl.launch.slurm_slots import slurm_slots
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.writing.space import free_bytes


@dataclass(frozen=True)
class Plan:
    """What `fit` is going to do."""

    runs: tuple[Run, ...]
    """Runs still to be trained."""

    slots: tuple[Slot, ...]
    """Where; at least one."""

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

    cores: Limit | None
    """Cores of this host for all runs together; None if they are trained elsewhere."""

    @property
    def settled(self) -> dict[str, Any]:
        """What `auto` came to where bits may depend on it; part of `experiment.json`."""
        return {"accelerator": self.slots[0].accelerator, "threads_per_run": self.slots[0].threads}


def make_plan(
    experiment: Experiment,
    runs: Sequence[Run],
    *,
    bytes_of: Mapping[int, int],
    record: ExperimentRecord | None,
) -> Plan:
    """Assigns the runs to slots and checks that devices, memory and disk are there.

    Args:
        experiment: The experiment.
        runs: Those of its runs that are still to be trained.
        bytes_of: Run number -> size of its shard, of every selected run.
        record: What the folder's `experiment.json` says, whose number of threads `auto` then means.

    Raises:
        UserError: If a device is not there, a number is out of range, or memory or disk are too small.
    """
    config = experiment.config
    copies = config["experiment"]["gather"] == "single" and config["experiment"]["run"] is None
    num_runs = max(1, len(runs))
    slots: tuple[Slot, ...] = ()
    if config["launch"]["launcher"] == "slurm":
        slots = slurm_slots(config, folder=experiment.paths.folder, num_runs=num_runs, record=record)
    memory = _memory(experiment, slots[0].accelerator if slots else chosen_devices(config)[0])
    cores = None if slots else available_cores()
    if cores is not None:
        slots = _slots(config, num_runs=num_runs, memory=memory, num_cores=int(cores.amount), record=record)
    plan = Plan(
        runs=tuple(runs),
        slots=slots,
        largest_bytes=max(bytes_of.values()),
        recording_bytes=sum(bytes_of[run.index] for run in runs),
        gathered_bytes=sum(bytes_of.values()) if copies else 0,
        keeps_shards=config["experiment"]["keep_shards"],
        free_bytes=_free_bytes(experiment, runs),
        memory=memory,
        cores=cores,
    )
    _check_disk(plan, experiment)
    return plan


def describe(experiment: Experiment, plan: Plan) -> str:
    """Returns the plan as text for a person."""
    done = len(experiment.selected) - len(plan.runs)
    names = Counter(slot.name for slot in plan.slots)
    slots = ", ".join(f"{name} x {count}" for name, count in names.items())
    if experiment.config["launch"]["launcher"] == "slurm":
        slots = f"Slurm tasks with {slots}"
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
            *([f"cores       {plan.cores.amount:g} ({plan.cores.source})"] if plan.cores else []),
            f"memory      {plan.memory.describe()}",
        )
    )


def _memory(experiment: Experiment, accelerator: str) -> Memory:
    """Returns the memory there is, and what the run of the experiment that needs most takes of it."""
    where: Literal["forked", "apart", "here"] = (
        "forked" if start_method(accelerator) == "forkserver" else "apart"
    )
    is_elsewhere = experiment.config["launch"]["launcher"] == "slurm"
    if is_elsewhere:
        where = "apart"
    elif len(experiment.selected) == 1:
        where = "here"
    configs = [experiment.run_config(run) for run in experiment.selected]
    hosts = [host_need(config, accelerator=accelerator, where=where) for config in configs]
    devices = [device_need(config, accelerator=accelerator) for config in configs]
    free = None if is_elsewhere else free_memory()
    if free is not None and where != "apart":  # it is part of what is needed, or on its way out
        free = Limit(free.amount + fork_server_bytes(), free.source)
    return Memory(
        host=max(hosts, key=lambda need: need.run_bytes),
        host_free=free,
        accelerator=accelerator,
        device=max(devices, key=lambda need: need.run_bytes),
        device_free={} if is_elsewhere else free_device_memory(*chosen_devices(experiment.config)),
    )


def _slots(
    config: dict[str, Any],
    *,
    num_runs: int,
    memory: Memory,
    num_cores: int,
    record: ExperimentRecord | None,
) -> tuple[Slot, ...]:
    launch = config["launch"]
    accelerator, devices = chosen_devices(config)
    per_device = launch["runs_per_device"]
    is_open = {per_device, str(launch["devices"]), str(config["trainer"]["devices"])} <= {"auto", "-1"}
    if per_device == "auto":
        # On the CPU one thread each was measured faster than several threads for fewer runs.
        per_device = 1 if devices else num_cores
    elif per_device < 1:
        raise UserError(f"launch.runs_per_device is {per_device}, expected at least 1 or auto")
    # Device after device, so that a few runs are spread over all devices.
    places = [device for _ in range(per_device) for device in devices or [None]][:num_runs]
    if is_open:
        places = places[: max(1, memory.num_fitting)]
    memory.check(places)
    threads = _threads(launch, max(1, num_cores // len(places)), record)
    return tuple(Slot(accelerator, device, threads) for device in places)


def _threads(launch: dict[str, Any], share: int, record: ExperimentRecord | None) -> int:
    threads = launch["threads_per_run"]
    if threads == "auto":
        recorded = None if record is None else record.threads_per_run
        return recorded or share
    if threads < 1:
        raise UserError(f"launch.threads_per_run is {threads}, expected at least 1 or auto")
    return int(threads)


def _free_bytes(experiment: Experiment, runs: Sequence[Run]) -> int | None:
    """Returns the free bytes where the experiment's folder is, or will be made; None if that is unknown."""
    folder = experiment.paths.folder
    while not folder.exists():
        folder = folder.parent
    partials = [experiment.paths.run(run.index).partial for run in runs]
    reused = sum(partial.stat().st_blocks * 512 for partial in partials if partial.exists())
    free = free_bytes(folder)
    return None if free is None else free + reused


def _check_disk(plan: Plan, experiment: Experiment) -> None:
    need = plan.recording_bytes
    if plan.gathered_bytes and not experiment.paths.gathered.exists():
        # Without the shards there is one run at a time that takes its place twice, and those still training.
        # A cluster gathers when all are done.
        at_once = 1 if experiment.config["launch"]["launcher"] == "slurm" else len(plan.slots)
        need += plan.gathered_bytes if plan.keeps_shards else at_once * plan.largest_bytes
    if plan.free_bytes is None or need <= plan.free_bytes:
        return
    parts, cheaper = f"{gb(plan.recording_bytes)} of recordings", ""
    if need > plan.recording_bytes:
        parts += f" and {gb(need - plan.recording_bytes)} to gather them in one file"
        cheaper = f"--experiment.gather index ({gb(plan.recording_bytes)}), --experiment.keep_shards false, "
    raise UserError(
        f"not enough free disk for {experiment.paths.folder}: need {gb(need)} ({parts}), have "
        f"{gb(plan.free_bytes)}; need less with {cheaper}fewer --recorder.tensors, --recorder.tokens dead, "
        "a larger --recorder.every_n_steps, fewer seeds or steps, or choose another --experiment.output_dir"
    )
