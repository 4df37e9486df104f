"""How much memory runs need, each for itself and for what those share that are forked from one process."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flannel_pl.config import Config
from flannel_pl.experiment import ResolvedExperiment, RunMemory
from flannel_pl.launch.cgroups import Limit

LIBRARY_BYTES = 450 * 2**20
"""Resident memory of a process that has imported torch, lightning and transformers and trains nothing."""

GPU_LIBRARY_BYTES = 800 * 2**20
"""The same with a torch that is built for GPUs, before one is used: its libraries are larger."""

OWN_BYTES = 100 * 2**20
"""What a run has of its own of that, when it is forked from a process that has imported everything."""


@dataclass(frozen=True)
class Need:
    """Memory of runs that are trained side by side."""

    run_bytes: int
    """Of each run by itself."""

    shared_bytes: int = 0
    """Once, however many runs there are."""

    def of(self, num_runs: int) -> int:
        """Returns what so many runs need together, in bytes."""
        return self.shared_bytes + num_runs * self.run_bytes

    def num_fitting(self, free_bytes: float) -> int:
        """Returns how many runs `free_bytes` are enough for."""
        return max(0, int((free_bytes - self.shared_bytes) // self.run_bytes))


@dataclass(frozen=True)
class Memory:
    """What the runs of an experiment need, and what there is."""

    host: Need
    host_free: Limit | None
    """None where that is not known."""

    accelerator: str
    device: Need
    """What runs take of a device's own memory; the CPU has none."""

    device_free: Mapping[int, int]
    """Number of a device -> its free bytes, as far as that is known."""

    @property
    def num_fitting(self) -> int:
        """The number of runs that the memory of the host is enough for."""
        return sys.maxsize if self.host_free is None else self.host.num_fitting(self.host_free.amount)

    def short(self, places: Sequence[int | None]) -> Iterator[str]:
        """Yields a sentence for each memory that is not enough.

        Args:
            places: The number of the device of each of the runs that are trained side by side.
        """
        if len(places) > self.num_fitting:
            assert self.host_free is not None
            where = "one cpu device" if self.accelerator == "cpu" else "this host"
            yield _short(len(places), where, self.host, self.host_free)
        for device, free_bytes in self.device_free.items():
            num_runs = places.count(device)
            if num_runs > self.device.num_fitting(free_bytes):
                where = f"{self.accelerator}:{device}"
                yield _short(num_runs, where, self.device, Limit(free_bytes, "nvidia-smi"))

    def describe(self) -> str:
        """Returns it in words."""
        text = f"about {gb(self.host.run_bytes)} a run"
        if self.host.shared_bytes:
            text += f" and {gb(self.host.shared_bytes)} for all of them"
        text += " (estimate)"
        if self.host_free is not None:
            text += f"; free: {gb(self.host_free.amount)} ({self.host_free.source})"
        if self.accelerator != "cpu":
            text += f"; on its device about {gb(self.device.run_bytes)} a run (estimate)"
            for device, free_bytes in self.device_free.items():
                text += f"; free on {self.accelerator}:{device}: {gb(free_bytes)}"
        return text


def _short(num_runs: int, where: str, need: Need, free: Limit) -> str:
    return (
        f"{num_runs} run(s) side by side on {where} need about {gb(need.of(num_runs))} of memory, and "
        f"{gb(free.amount)} are free ({free.source}); train fewer at a time "
        "(--launch.runs_per_device, --trainer.devices) or with a smaller --data.batch_size"
    )


def gb(num_bytes: float) -> str:
    """Returns e.g. '51.45 GB'."""
    return f"{num_bytes / 1e9:.2f} GB"


def host_need(
    config: Config,
    *,
    accelerator: str,
    where: Literal["forked", "apart", "here"],
    measured: RunMemory | None = None,
) -> Need:
    """Estimates what runs take of the memory of a host.

    Args:
        config: Of the run that needs most.
        accelerator: Where it is trained; an accelerator's own memory is not meant here.
        where: In processes forked from one that has imported everything, in processes of their own, or in
            this one, which has imported everything.
        measured: What was measured of it, where the config does not tell; then without what its batches take.
    """
    model = _model_bytes(config, measured, accelerator=accelerator) if accelerator == "cpu" else 0
    own = OWN_BYTES + _ring_bytes(config, measured) + _live_bytes(config, measured) + model
    shared = _library_bytes() - OWN_BYTES
    if where == "apart":
        return Need(own + shared)
    return Need(own, shared if where == "forked" else 0)


def device_need(config: Config, *, accelerator: str, measured: RunMemory | None = None) -> Need:
    """Estimates what runs take of the memory of an accelerator that they share; like `host_need`."""
    model = _model_bytes(config, measured, accelerator=accelerator)
    return Need(_library_bytes() + _ring_bytes(config, measured) + model)


def memory_of(
    experiment: ResolvedExperiment,
    *,
    accelerator: str,
    where: Literal["forked", "apart", "here"] = "apart",
    host_free: Limit | None = None,
    device_free: Mapping[int, int] | None = None,
) -> Memory:
    """Returns what the run of an experiment that needs most takes of memory, and what there is.

    Args:
        experiment: The experiment.
        accelerator: Where its runs are trained.
        where: As in `host_need`.
        host_free: Free on the host; None = that is not known.
        device_free: Number of a device -> its free bytes, as far as that is known.
    """
    runs = [(experiment.run_config(run), experiment.memory_of.get(run.index)) for run in experiment.selected]
    hosts = [
        host_need(config, accelerator=accelerator, where=where, measured=measured)
        for config, measured in runs
    ]
    devices = [device_need(config, accelerator=accelerator, measured=measured) for config, measured in runs]
    return Memory(
        host=max(hosts, key=lambda need: need.run_bytes),
        host_free=host_free,
        accelerator=accelerator,
        device=max(devices, key=lambda need: need.run_bytes),
        device_free=device_free or {},
    )


def _library_bytes() -> int:
    import torch

    return GPU_LIBRARY_BYTES if torch.version.cuda or torch.version.hip else LIBRARY_BYTES


def _ring_bytes(config: Config, measured: RunMemory | None) -> int:
    """Returns the size of the recorder's ring of four rows, of four tensors where that was not measured."""
    if measured is not None:
        return 4 * measured.row_bytes
    model = config.model.arguments
    return int(model["vocab_size"] * model["hidden_dim"] * 4 * 4 * 2)


def _live_bytes(config: Config, measured: RunMemory | None) -> int:
    """Returns what live metrics take: the row before, and some three copies of a row in float64."""
    bytes_per_weight = 2 + 3 * 8
    ring_bytes_per_weight = 4 * 4 * 2
    is_live = bool(config.recorder.live)
    return is_live * _ring_bytes(config, measured) * bytes_per_weight // ring_bytes_per_weight


def _model_bytes(config: Config, measured: RunMemory | None, *, accelerator: str) -> int:
    """Estimates what training takes.

    The logits (B, T, V), on the CPU under bfloat16 autocast once in bfloat16 (see models/projection.py) and
    as much again for what a heap that is never given back leaves unused; else once in bfloat16, and three in
    float32 of which all but a sliver exist at a time. Of every parameter the weight, its gradient, Adam's two
    moments, and twice three of them in a checkpoint.
    """
    if measured is not None:
        return 10 * measured.parameter_bytes
    in_pieces = accelerator == "cpu" and config.trainer.precision == "bf16-mixed"
    model = config.model.arguments
    vocab_size, seq_len, dim = model["vocab_size"], model["max_seq_len"], model["hidden_dim"]
    logits: int = config.data.arguments["batch_size"] * seq_len * vocab_size
    parameters: int = (vocab_size + seq_len) * dim + 12 * model["n_layer"] * dim**2
    parameter_bytes = 2 if model["param_dtype"] == "bfloat16" else 4
    return logits * (4 if in_pieces else 16) + parameters * 10 * parameter_bytes
