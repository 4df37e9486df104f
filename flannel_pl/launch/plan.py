"""Which run is trained where: devices, slots, threads, and whether the disk can hold it all."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.experiment import Experiment, Run, Slot

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What `fit` is going to do."""

    runs: tuple[Run, ...]
    """Runs still to be trained."""

    slots: tuple[Slot, ...]
    recording_bytes: int
    """Bytes of the shards still to be written."""

    gathered_bytes: int
    """Bytes of the gathered file; 0 if nothing is copied."""

    free_bytes: int
    """Free on the disk, counting what unfinished recordings of these runs take up now."""

    worker_bytes: int
    """Estimated peak memory of one run."""


def describe(experiment: Experiment, plan: Plan) -> str:
    """Returns the plan as text for a person."""
    done = len(experiment.selected) - len(plan.runs)
    slots = ", ".join(
        f"{name} x {count}" for name, count in Counter(slot.name for slot in plan.slots).items()
    )
    return "\n".join(
        (
            f"experiment  {experiment.paths.folder}",
            f"runs        {len(plan.runs)} to train, {done} finished",
            f"devices     {slots}; {plan.slots[0].threads} thread(s) per run",
            f"recordings  {_gb(plan.recording_bytes)} to write, {_gb(plan.gathered_bytes)} to gather",
            f"disk        {_gb(plan.free_bytes)} free",
            f"memory      about {plan.worker_bytes / GIB:.1f} GiB per run (estimate)",
        )
    )


def make_plan(experiment: Experiment, runs: Sequence[Run], *, bytes_of: dict[int, int]) -> Plan:
    """Assigns the runs to slots and checks that devices and disk are there.

    Args:
        experiment: The experiment.
        runs: Those of its runs that are still to be trained.
        bytes_of: Run number -> size of its shard; of every run of the experiment that is selected.

    Raises:
        UserError: If a device is not there, a number is out of range, or the disk is too small.
    """
    config = experiment.config
    worker_bytes = estimate_worker_bytes(config)
    copies = config["experiment"]["gather"] == "single" and config["experiment"]["run"] is None
    plan = Plan(
        runs=tuple(runs),
        slots=_slots(config, num_runs=max(1, len(runs)), worker_bytes=worker_bytes),
        recording_bytes=sum(bytes_of[run.index] for run in runs),
        gathered_bytes=sum(bytes_of.values()) if copies else 0,
        free_bytes=_free_bytes(experiment, runs),
        worker_bytes=worker_bytes,
    )
    _check_disk(plan, experiment.paths.folder)
    return plan


def estimate_worker_bytes(config: dict[str, Any]) -> int:
    """Estimates the peak resident memory of one run, from its batch of logits, its weights and its ring.

    The libraries take about 0.6 GiB. Of the logits (B, T, V) there are at most one bfloat16 and three float32
    copies at a time (the loss, its softmax, and the gradient), and Adam keeps two more copies of the weights.
    """
    model, data = config["model"], config["data"]
    logits: int = data["batch_size"] * model["max_seq_len"] * model["vocab_size"]
    embedding: int = model["vocab_size"] * model["hidden_dim"]
    return int(0.6 * GIB) + logits * (2 + 3 * 4) + embedding * 4 * (4 + 4 * 4)


def _slots(config: dict[str, Any], *, num_runs: int, worker_bytes: int) -> tuple[Slot, ...]:
    launch = config["launch"]
    accelerator, devices = _devices(config)
    per_device = launch["runs_per_device"]
    cores = _num_cores()
    if per_device == "auto":
        per_device = _cpu_slots(cores, worker_bytes) if accelerator == "cpu" and devices == [None] else 1
    elif per_device < 1:
        raise UserError(f"launch.runs_per_device is {per_device}, expected at least 1 or auto")
    # Device after device, so that a few runs are spread over all devices.
    places = [device for _ in range(per_device) for device in devices][:num_runs]
    threads = launch["threads_per_run"]
    if threads == "auto":
        threads = max(1, cores // len(places))
    elif threads < 1:
        raise UserError(f"launch.threads_per_run is {threads}, expected at least 1 or auto")
    return tuple(Slot(accelerator, device, threads) for device in places)


def _num_cores() -> int:
    """Returns the cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_slots(cores: int, worker_bytes: int) -> int:
    """One run per core: one thread each was measured faster than several threads for fewer runs."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return max(1, min(cores, memory_bytes // worker_bytes))


def _devices(config: dict[str, Any]) -> tuple[str, list[int | None]]:
    """Returns the accelerator and the numbers of the devices the runs may use."""
    wanted = config["launch"]["devices"]
    if wanted == "auto":
        wanted = config["trainer"]["devices"]
    elif config["trainer"]["devices"] not in ("auto", wanted):
        raise UserError(
            f"launch.devices is {wanted} and trainer.devices is {config['trainer']['devices']}; they mean "
            "the same, so give one of them"
        )
    there = available_devices()
    accelerator = {"gpu": "cuda" if "cuda" in there else "mps"}.get(
        config["trainer"]["accelerator"], config["trainer"]["accelerator"]
    )
    if accelerator == "auto":
        accelerator = next(iter(there))
    if accelerator not in there:
        raise UserError(
            f"trainer.accelerator is {config['trainer']['accelerator']}, but there is no such device here; "
            f"there is {', '.join(f'{name} ({count})' for name, count in there.items())}"
        )
    return accelerator, _device_numbers(wanted, accelerator, there[accelerator])


def _device_numbers(wanted: Any, accelerator: str, count: int) -> list[int | None]:
    if isinstance(wanted, str) and wanted != "auto":
        try:
            numbers = [int(number) for number in wanted.split(",") if number.strip()]
        except ValueError:
            raise UserError(
                f"devices is {wanted!r}, expected auto, a number, or ids such as [0, 2]"
            ) from None
        wanted = numbers if "," in wanted else numbers[0]
    if accelerator == "cpu":
        # Lightning's meaning of `devices` on the CPU: that many processes.
        if wanted == "auto":
            return [None]
        if not isinstance(wanted, int) or wanted < 1:
            raise UserError(
                f"devices is {wanted}, expected on the CPU a number of runs side by side, or auto"
            )
        return [None] * wanted
    if wanted in ("auto", -1):
        return list(range(count))
    ids = list(range(wanted)) if isinstance(wanted, int) else list(wanted)
    missing = [number for number in ids if not 0 <= number < count]
    if missing or not ids:
        raise UserError(
            f"devices is {wanted}, but of {accelerator} there is only {list(range(count))}; give fewer, or "
            "auto"
        )
    return list(ids)


def available_devices() -> dict[str, int]:
    """Returns accelerator -> number of devices, the preferred one first. Starts no context on any of them."""
    import torch

    found = {}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.device_count()
    if torch.backends.mps.is_available():
        found["mps"] = 1
    return {**found, "cpu": 1}


def _free_bytes(experiment: Experiment, runs: Sequence[Run]) -> int:
    """Returns the free bytes where the experiment's folder is, or will be made."""
    folder = experiment.paths.folder
    while not folder.exists():
        folder = folder.parent
    partials = [experiment.paths.run(run.index).partial for run in runs]
    reused = sum(partial.stat().st_blocks * 512 for partial in partials if partial.exists())
    return shutil.disk_usage(folder).free + reused


def _check_disk(plan: Plan, folder: Path) -> None:
    need = plan.recording_bytes + plan.gathered_bytes
    if need <= plan.free_bytes:
        return
    parts, cheaper = f"{_gb(plan.recording_bytes)} of recordings", ""
    if plan.gathered_bytes:
        parts += f" and {_gb(plan.gathered_bytes)} to gather them in one file"
        cheaper = f"--experiment.gather index ({_gb(plan.recording_bytes)}), "
    raise UserError(
        f"not enough free disk for {folder}: need {_gb(need)} ({parts}), have {_gb(plan.free_bytes)}; need "
        f"less with {cheaper}fewer --recorder.tensors, --recorder.tokens dead, a larger "
        "--recorder.every_n_steps, fewer seeds or steps, or choose another --experiment.output_dir"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
