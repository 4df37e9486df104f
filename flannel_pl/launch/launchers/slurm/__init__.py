"""Jobs of a Slurm cluster."""

from flannel_pl.launch.launchers.slurm.submitting import TASK_SCRIPT, SlurmLauncher

__all__ = ["LAUNCHER", "TASK_SCRIPT"]

LAUNCHER = SlurmLauncher
