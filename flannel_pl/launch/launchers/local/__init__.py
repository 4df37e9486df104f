"""Processes of this host, which end with the command that started them."""

from flannel_pl.launch.launchers.local.processes import LocalLauncher

LAUNCHER = LocalLauncher
