"""What tests ask about processes that are not theirs."""

import os
from pathlib import Path


def alive(pid: int) -> bool:
    """Tells whether a process runs: one that has ended and that nobody has waited for yet does not."""
    if not Path("/proc/self/stat").exists():  # macOS
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends while this is read
        return False
