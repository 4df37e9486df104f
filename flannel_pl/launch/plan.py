"""Which run is trained where: slots, threads, and whether memory and disk can hold it all."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.launch.devices import chosen_devices, free_memory_bytes, num_cores
from flannel_pl.launch.slurm import slurm_slots
from flannel_pl.recording.record import ExperimentRecord

LIBRARY_BYTES = 450 * 2**20
"""Resident memory of a process that has imported torch, lightning and transformers and trains nothing."""

GPU_LIBRARY_BYTES = 800 * 2**20
"""The same with a torch that is built for GPUs, before one is used: its libraries are larger."""


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

    free_bytes: int
    """Free on the disk, counting what unfinished recordings of these runs take up now."""

    worker_bytes: int
    """Estimated peak memory of one run."""

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
    accelerator = slots[0].accelerator if slots else chosen_devices(config)[0]
    worker_bytes = max(
        estimate_worker_bytes(experiment.run_config(run), accelerator=accelerator)
        for run in experiment.selected
    )
    slots = slots or _slots(config, num_runs=num_runs, worker_bytes=worker_bytes, record=record)
    plan = Plan(
        runs=tuple(runs),
        slots=slots,
        largest_bytes=max(bytes_of.values()),
        recording_bytes=sum(bytes_of[run.index] for run in runs),
        gathered_bytes=sum(bytes_of.values()) if copies else 0,
        keeps_shards=config["experiment"]["keep_shards"],
        free_bytes=_free_bytes(experiment, runs),
        worker_bytes=worker_bytes,
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
            f"recordings  {_gb(plan.largest_bytes)} a run, {_gb(plan.recording_bytes)} still to write",
            f"gathered    {_gb(plan.gathered_bytes)} to copy"
            if plan.gathered_bytes
            else "gathered    nothing to copy",
            f"disk        {_gb(plan.free_bytes)} free",
            f"memory      about {_gb(plan.worker_bytes)} a run (estimate)",
        )
    )


def estimate_worker_bytes(config: dict[str, Any], *, accelerator: str) -> int:
    """Estimates the peak memory of one run.

    Besides the libraries: the logits (B, T, V), on the CPU under bfloat16 autocast once in bfloat16 (see
    training/projection.py) and as much again for what a heap that is never given back leaves unused; else
    once in bfloat16, and three in float32 of which all but a sliver exist at a time; the recorder's ring of
    four rows of four tensors; of every parameter the weight, its gradient, Adam's two moments, and twice
    three of them in a checkpoint.
    """
    import torch

    in_pieces = accelerator == "cpu" and config["trainer"]["precision"] == "bf16-mixed"
    logit_bytes = 4 if in_pieces else 16
    model, data = config["model"], config["data"]
    vocab_size, seq_len, dim = model["vocab_size"], model["max_seq_len"], model["hidden_dim"]
    logits: int = data["batch_size"] * seq_len * vocab_size
    parameters: int = (vocab_size + seq_len) * dim + 12 * model["n_layer"] * dim**2
    ring: int = vocab_size * dim * 4 * 4 * 2
    parameter_bytes = 2 if model["param_dtype"] == "bfloat16" else 4
    library_bytes = GPU_LIBRARY_BYTES if torch.version.cuda or torch.version.hip else LIBRARY_BYTES
    return library_bytes + logits * logit_bytes + ring + parameters * 10 * parameter_bytes


def _slots(
    config: dict[str, Any], *, num_runs: int, worker_bytes: int, record: ExperimentRecord | None
) -> tuple[Slot, ...]:
    launch = config["launch"]
    accelerator, devices = chosen_devices(config)
    per_device = launch["runs_per_device"]
    free_bytes = free_memory_bytes(accelerator, devices[0] if devices else None)
    if per_device == "auto":
        per_device = 1
        if not devices:
            # One thread each was measured faster than several threads for fewer runs.
            fitting = num_cores() if free_bytes is None else max(1, free_bytes // worker_bytes)
            per_device = min(num_cores(), fitting)
    elif per_device < 1:
        raise UserError(f"launch.runs_per_device is {per_device}, expected at least 1 or auto")
    # Device after device, so that a few runs are spread over all devices.
    places = [device for _ in range(per_device) for device in devices or [None]][:num_runs]
    sharing = len(places) if accelerator == "cpu" else min(per_device, len(places))
    if free_bytes is not None and sharing * worker_bytes > free_bytes:
        raise UserError(
            f"{sharing} run(s) side by side on one {accelerator} device need about "
            f"{_gb(sharing * worker_bytes)} of memory, and {_gb(free_bytes)} are free; train fewer at a time "
            "(--launch.runs_per_device, --trainer.devices) or with a smaller --data.batch_size"
        )
    return tuple(Slot(accelerator, device, _threads(launch, len(places), record)) for device in places)


def _threads(launch: dict[str, Any], num_slots: int, record: ExperimentRecord | None) -> int:
    threads = launch["threads_per_run"]
    if threads == "auto":
        recorded = None if record is None else record.threads_per_run
        return recorded or max(1, num_cores() // num_slots)
    if threads < 1:
        raise UserError(f"launch.threads_per_run is {threads}, expected at least 1 or auto")
    return int(threads)


def _free_bytes(experiment: Experiment, runs: Sequence[Run]) -> int:
    """Returns the free bytes where the experiment's folder is, or will be made."""
    folder = experiment.paths.folder
    while not folder.exists():
        folder = folder.parent
    partials = [experiment.paths.run(run.index).partial for run in runs]
    reused = sum(partial.stat().st_blocks * 512 for partial in partials if partial.exists())
    return shutil.disk_usage(folder).free + reused


def _check_disk(plan: Plan, experiment: Experiment) -> None:
    need = plan.recording_bytes
    if plan.gathered_bytes and not experiment.paths.gathered.exists():
        # Without the shards there is one run at a time that takes its place twice, and those still training.
        # A cluster gathers when all are done.
        at_once = 1 if experiment.config["launch"]["launcher"] == "slurm" else len(plan.slots)
        need += plan.gathered_bytes if plan.keeps_shards else at_once * plan.largest_bytes
    if need <= plan.free_bytes:
        return
    parts, cheaper = f"{_gb(plan.recording_bytes)} of recordings", ""
    if need > plan.recording_bytes:
        parts += f" and {_gb(need - plan.recording_bytes)} to gather them in one file"
        cheaper = f"--experiment.gather index ({_gb(plan.recording_bytes)}), --experiment.keep_shards false, "
    raise UserError(
        f"not enough free disk for {experiment.paths.folder}: need {_gb(need)} ({parts}), have "
        f"{_gb(plan.free_bytes)}; need less with {cheaper}fewer --recorder.tensors, --recorder.tokens dead, "
        "a larger --recorder.every_n_steps, fewer seeds or steps, or choose another --experiment.output_dir"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
