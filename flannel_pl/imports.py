"""Before torch, Lightning and transformers are imported: who this process is for them; and in less time."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TEAM_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "ROLE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NPROCS"),
    "SLURM_NTASKS_PER_NODE",
}
_TEAM_PREFIXES = ("TORCHELASTIC_", "JSM_NAMESPACE_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "PMIX_")


def stand_alone() -> None:
    """Makes this process, and those that it starts, rank 0 of its own, whatever started it calls it.

    `srun`, `torchrun` and `mpirun` number the processes that they start, and Lightning takes a number above 0
    for one of a team whose rank 0 writes the logs. It reads it when it is imported.
    """
    for name in [name for name in os.environ if name in _TEAM_VARIABLES or name.startswith(_TEAM_PREFIXES)]:
        del os.environ[name]
    if imported := sys.modules.get("lightning_utilities.core.rank_zero"):
        rank_zero_only: Any = imported.rank_zero_only
        rank_zero_only.rank = 0


@contextmanager
def quick_imports() -> Iterator[None]:
    """Keeps the garbage collector away from what is imported, which lives as long as the process.

    Collecting among the millions of objects of those libraries takes a third of the time that importing them
    takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
