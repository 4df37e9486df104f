"""Which slots this host has: devices, cores, and how many runs its memory is enough for."""

from typing import Literal

from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, Slot
from flannel_pl.launch.cgroups import Limit
from flannel_pl.launch.devices import available_cores, chosen_devices, free_device_memory, free_memory
from flannel_pl.launch.fork_server import fork_server_bytes, start_method
from flannel_pl.launch.launcher import Capacity, threads_per_run
from flannel_pl.launch.memory import Memory, memory_of
from flannel_pl.recording.experiment_record import ExperimentRecord


def capacity_here(
    experiment: ResolvedExperiment, *, num_runs: int, record: ExperimentRecord | None
) -> Capacity:
    """Returns what this host has for an experiment.

    Args:
        experiment: The experiment.
        num_runs: Runs that are to be trained.
        record: What the folder's `experiment.json` says, whose number of threads `auto` then means.

    Raises:
        UserError: If a device is not there, or a number is out of range.
    """
    memory, cores = _memory(experiment), available_cores()
    slots = _slots(
        experiment.config, num_runs=num_runs, memory=memory, num_cores=int(cores.amount), record=record
    )
    short = tuple(memory.short([slot.device for slot in slots]))
    return Capacity(slots, memory=memory, cores=cores, short=short)


def _memory(experiment: ResolvedExperiment) -> Memory:
    """Returns the memory there is, and what the run of the experiment that needs most takes of it."""
    accelerator, devices = chosen_devices(experiment.config)
    where: Literal["forked", "apart", "here"] = "apart"
    if len(experiment.selected) == 1:
        where = "here"
    elif start_method(accelerator) == "forkserver":
        where = "forked"
    free = free_memory()
    if free is not None and where != "apart":  # it is part of what is needed, or on its way out
        free = Limit(free.amount + fork_server_bytes(), free.source)
    return memory_of(
        experiment,
        accelerator=accelerator,
        where=where,
        host_free=free,
        device_free=free_device_memory(accelerator, devices),
    )


def _slots(
    config: Config,
    *,
    num_runs: int,
    memory: Memory,
    num_cores: int,
    record: ExperimentRecord | None,
) -> tuple[Slot, ...]:
    launch = config.launch
    accelerator, devices = chosen_devices(config)
    per_device = launch.runs_per_device
    is_open = {per_device, str(launch.devices), str(config.trainer.devices)} <= {"auto", "-1"}
    if per_device == "auto":
        # On the CPU one thread each was measured faster than several threads for fewer runs.
        per_device = 1 if devices else num_cores
    elif per_device < 1:
        raise UserError(f"launch.runs_per_device is {per_device}, expected at least 1 or auto")
    # Device after device, so that a few runs are spread over all devices.
    places = [device for _ in range(per_device) for device in devices or [None]][:num_runs]
    if is_open:
        places = places[: max(1, memory.num_fitting)]
    threads = threads_per_run(config, record, auto=max(1, num_cores // len(places)))
    return tuple(Slot(accelerator, device, threads) for device in places)
