"""The keys `launch.slurm.*`."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class SlurmConfig:
    """What to ask Slurm for; a run is one task of an array job."""

    partition: str | None = None
    """Partition; null = the cluster's default."""

    time: str | None = None
    """Time limit of one task as sbatch writes it, e.g. 04:00:00; null = the partition's. A run that
    needs longer checkpoints before the limit, is queued again and goes on."""

    gpus_per_run: Literal[0, 1] = 1
    """GPUs of one run; 0 = train on the CPU."""

    array_limit: int | None = None
    """Runs trained at the same time at most; null = as many as the cluster has room for."""

    extra: list[str] = field(default_factory=list)
    """Further options of sbatch, e.g. [--account=physics, --mem=8G]."""
