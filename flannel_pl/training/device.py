"""Whether this process can use the device that it is to train on."""

from typing import Any

import torch

from flannel_pl.errors import RunError, UnusableProcess
from flannel_pl.experiment import Slot


def check_device(slot: Slot) -> None:
    """Refuses to train where the device would not do what it is told, or not at all.

    In a process that was forked from one that had used the device, `torch.manual_seed` passes over it without
    a word, so that the numbers drawn on it would not be the seed's.

    Args:
        slot: Where this process is to train.

    Raises:
        UnusableProcess: If no process that is started in this way can use the device.
        RunError: If the device does not work.
    """
    if slot.accelerator == "cpu":
        return
    module: Any = getattr(torch, slot.accelerator)
    if module._is_in_bad_fork():  # there is no public way to ask
        raise UnusableProcess(
            f"{slot.name} cannot be used in a process that was forked from one that had used it; start "
            "`flannel-pl fit` by itself, not from a program that has used the device"
        )
    try:
        torch.ones(1, device=torch.device(slot.accelerator, slot.number or 0)).item()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(
            f"{slot.name} cannot be used: {reason}. See what else uses it, or leave it out with "
            "--trainer.devices."
        ) from error
