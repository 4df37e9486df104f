"""What tests that need a CUDA device share.

With FLANNEL_PL_REHEARSE set they run on the CPU, so that whoever has no such device sees that they can run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

REHEARSES = "FLANNEL_PL_REHEARSE" in os.environ
DEVICE = "cpu" if REHEARSES else "cuda"

MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSES or torch.cuda.is_available()), reason="no CUDA device here"),
]


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Has every kernel give the same bits each time; some of CUDA's would not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)


class NobodyWaits:
    """Around something again and again, fails it if the host waits for the device; torch tells, not we.

    Args:
        but_for: The first times, in which files are made, nobody looks.
    """

    def __init__(self, *, but_for: int) -> None:
        self.num_left = but_for

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.num_left -= 1
        if not REHEARSES:
            torch.cuda.set_sync_debug_mode("error" if self.num_left < 0 else "default")
        try:
            yield
        finally:
            if not REHEARSES:
                torch.cuda.set_sync_debug_mode("default")
