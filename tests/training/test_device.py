"""Devices that a process cannot use, and what the fork server may not touch."""

import json
import subprocess
import sys

import pytest
import torch

from flannel_pl.errors import RunError, UnusableProcess
from flannel_pl.experiment import Slot
from flannel_pl.training.device import check_device


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
def test_a_process_that_was_forked_too_late_is_refused(
    monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(getattr(torch, accelerator), "_is_in_bad_fork", lambda: True)
    with pytest.raises(UnusableProcess, match=rf"^{accelerator}:0 cannot be used in a process .* by itself"):
        check_device(Slot(accelerator, 0, 1))
    check_device(Slot("cpu", None, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_does_not_work_is_named() -> None:
    with pytest.raises(RunError, match=r"^cuda:2 cannot be used: .*leave it out with --trainer.devices"):
        check_device(Slot("cuda", 2, 1))


# Not MPS: transformers asks for it when it is imported, which is why nothing is forked where it is.
PRELOAD = """
import json, threading
import torch
asked = []
def note(name):
    ask = getattr(torch.cuda, name)
    def noting(*arguments, **options):
        asked.append(name)
        return ask(*arguments, **options)
    setattr(torch.cuda, name, noting)
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
    note(name)
import flannel_pl.training.worker
print(json.dumps([asked, torch.cuda.is_initialized(), threading.active_count()]))
"""


def test_what_the_fork_server_imports_touches_no_gpu_and_starts_no_thread() -> None:
    answer = subprocess.run([sys.executable, "-c", PRELOAD], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == [[], False, 1]
