"""What the container or the job around this process leaves it of memory and of cores: the limits of cgroups.

Version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html) and version 1 (memory.rst and sched-bwc.rst of
the same documentation), or both at once. A process is in a cgroup of each hierarchy, and the limits of all
cgroups around that count. A container often sees only a part of the hierarchy, mounted as if it were all.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 2**60
"""Version 1 writes the largest number there is for no limit."""


@dataclass(frozen=True)
class Limit:
    """How much there is of something, and what says so."""

    amount: float
    """Bytes or cores."""

    source: str
    """E.g. the file of the cgroup that sets the limit."""


def memory_limit(root: Path = Path("/")) -> Limit | None:
    """Returns how many bytes this process and those it starts may still take; None if nothing limits them.

    Cached files do not count as taken, since the kernel drops them when memory is short.

    Args:
        root: The root of the file system; another one for a test.
    """
    found = [limit for folder in _cgroups("memory", root) for limit in _memory_limits(folder)]
    return min(found, key=lambda limit: limit.amount, default=None)


def core_limit(root: Path = Path("/")) -> Limit | None:
    """Returns how many cores' time this process and those it starts get; None if nothing limits it.

    Args:
        root: The root of the file system; another one for a test.
    """
    found = [limit for folder in _cgroups("cpu", root) for limit in _core_limits(folder)]
    return min(found, key=lambda limit: limit.amount, default=None)


def _memory_limits(folder: Path) -> Iterator[Limit]:
    stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    used = _number(folder / "memory.current"), _number(folder / "memory.usage_in_bytes")
    cached = sum(
        # Version 1 counts without `total_` what is in this cgroup only, not in those within it.
        int(stat.get(f"total_{kind}_file", stat.get(f"{kind}_file", "0")))
        for kind in ("active", "inactive")
    )
    taken = max(0, next((number for number in used if number is not None), 0) - cached)
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and limit < UNLIMITED_BYTES:
            yield Limit(max(0, limit - taken), str(folder / name))
    # Version 1 tells the lowest limit around this cgroup also where the cgroup that sets it cannot be seen.
    hidden = int(stat.get("hierarchical_memory_limit", UNLIMITED_BYTES))
    if hidden < UNLIMITED_BYTES:
        yield Limit(max(0, hidden - taken), f"hierarchical_memory_limit of {folder / 'memory.stat'}")


def _core_limits(folder: Path) -> Iterator[Limit]:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    name = "cpu.max"
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        name = "cpu.cfs_quota_us"
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max"
        if int(quota) > 0:  # else -1
            yield Limit(int(quota) / int(period), str(folder / name))


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yields the folders of all cgroups that this process is in, the innermost of a hierarchy first."""
    own: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)  # version 2 has no names of controllers here
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, what = line.partition(" - ")
        kind, *_, options = what.split(" ")
        if kind == "cgroup2":
            cgroup = own.get("")
        else:
            cgroup = own.get(controller) if kind == "cgroup" and controller in options.split(",") else None
        if cgroup is None:
            continue
        mounted, point = (_unescaped(field) for field in place.split(" ")[3:5])
        below = _below(PurePosixPath(cgroup), PurePosixPath(mounted))
        if below is not None:
            top = root / point.lstrip("/")
            yield from (top / part for part in (below, *below.parents))


def _below(cgroup: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath | None:
    """Returns where a cgroup is below the one that is mounted, None if it is elsewhere.

    Of a mount from outside of this container's namespace, only how far out it begins is known: the cgroup
    that begins there is one around us, but what is between cannot be told.
    """
    if cgroup.is_relative_to(mounted):
        below = cgroup.relative_to(mounted)
        return None if ".." in below.parts else below
    is_around = set(mounted.parts[1:]) == {".."} and ".." not in cgroup.parts
    return PurePosixPath() if is_around else None


def _unescaped(field: str) -> str:
    r"""Reads what the kernel writes for blanks and the like, e.g. \040."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field)


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None  # "max" is no number


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
