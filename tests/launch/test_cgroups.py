"""Limits of containers and jobs: made-up file systems of many layouts, and a real cgroup."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flannel_pl.launch.cgroups import Limit, core_limit, memory_limit
from tests.conftest import SmallData

MIB = 2**20
UNLIMITED = 9223372036854771712

V2 = "30 24 0:26 {root} {point} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "36 31 0:32 {root} {point} ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,{controllers}"
OTHERS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"
)


class Container:
    """The files of a container, as far as they tell about cgroups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts = [OTHERS]
        self.own: list[str] = []
        (root / "proc/self").mkdir(parents=True)

    def mount(self, line: str, point: str, *, root: str = "/", controllers: str = "") -> None:
        self.mounts.append(line.format(root=root, point=point.replace(" ", r"\040"), controllers=controllers))

    def write(self, folder: str, **files: object) -> str:
        """Writes the files of a cgroup; underlines stand for dots. Returns its folder as a limit names it."""
        path = self.root / folder.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name.replace("_", ".", 1)).write_text(f"{content}\n")
        return str(path)

    def memory(self) -> Limit | None:
        self._write_proc()
        return memory_limit(self.root)

    def cores(self) -> Limit | None:
        self._write_proc()
        return core_limit(self.root)

    def _write_proc(self) -> None:
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.root / "proc/self/cgroup").write_text("\n".join(self.own) + "\n")


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def stat(*, inactive: int = 0, active: int = 0, total: bool = False, **more: int) -> str:
    prefix = "total_" if total else ""
    lines = {f"{prefix}inactive_file": inactive * MIB, f"{prefix}active_file": active * MIB, **more}
    return "\n".join(f"{name} {value}" for name, value in lines.items())


def test_version_2_in_a_namespace_of_its_own(container: Container) -> None:
    container.own = ["0::/"]
    container.mount(V2, "/sys/fs/cgroup")
    folder = container.write(
        "/sys/fs/cgroup",
        memory_max=1000 * MIB,
        memory_high="max",
        memory_current=700 * MIB,
        memory_stat=stat(inactive=300, active=100),
        cpu_max="50000 100000",
    )
    assert container.memory() == Limit(700 * MIB, f"{folder}/memory.max")
    assert container.cores() == Limit(0.5, f"{folder}/cpu.max")


def test_memory_high_counts_and_nothing_is_less_than_none(container: Container) -> None:
    container.own = ["0::/"]
    container.mount(V2, "/sys/fs/cgroup")
    folder = container.write(
        "/sys/fs/cgroup", memory_max=1000 * MIB, memory_high=400 * MIB, memory_current=500 * MIB
    )
    assert container.memory() == Limit(0, f"{folder}/memory.high")


def test_the_narrowest_of_all_cgroups_around_counts(container: Container) -> None:
    container.own = ["0::/user.slice/user-1000.slice/session 1.scope"]
    container.mount(V2, "/sys/fs/cgroup")
    top, slice_ = "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/user-1000.slice"
    container.write(top, memory_stat=stat())  # the root has no limits
    container.write(f"{top}/user.slice", memory_max="max", memory_current=9000 * MIB, cpu_max="max 100000")
    around = container.write(
        slice_, memory_max=2000 * MIB, memory_current=1900 * MIB, cpu_max="250000 100000"
    )
    own = f"{slice_}/session 1.scope"
    container.write(own, memory_max=1500 * MIB, memory_current=100 * MIB, cpu_max="400000 100000")
    assert container.memory() == Limit(100 * MIB, f"{around}/memory.max")
    assert container.cores() == Limit(2.5, f"{around}/cpu.max")


@pytest.mark.parametrize("point", ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/mnt/a b/cgroup"])
def test_version_2_with_the_paths_of_the_host(container: Container, point: str) -> None:
    container.own = ["0::/docker/4f5e"]
    container.mount(V2, point, root="/docker/4f5e")
    folder = container.write(point, memory_max=64 * MIB, memory_current=0, cpu_max="100000 50000")
    assert container.memory() == Limit(64 * MIB, f"{folder}/memory.max")
    assert container.cores() == Limit(2.0, f"{folder}/cpu.max")


@pytest.mark.parametrize(("path", "below"), [("/docker/4f5e", ""), ("/docker/4f5e/init.scope", "init.scope")])
def test_version_1_in_docker(container: Container, path: str, below: str) -> None:
    container.own = [f"9:cpu,cpuacct:{path}", f"4:memory:{path}", "1:name=systemd:/", "0::/"]
    cpu, memory = "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"
    container.mount(V1, cpu, root="/docker/4f5e", controllers="cpu,cpuacct")
    container.mount(V1, memory, root="/docker/4f5e", controllers="memory")
    container.mount(V2, "/sys/fs/cgroup/unified")  # without controllers
    container.write("/sys/fs/cgroup/unified", cgroup_procs=1)
    limit = container.write(
        memory,
        memory_limit_in_bytes=1000 * MIB,
        memory_usage_in_bytes=900 * MIB,
        memory_stat=stat(inactive=1, total=False) + "\n" + stat(inactive=400, active=50, total=True),
    )
    if below:
        container.write(f"{memory}/{below}", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=10 * MIB)
    quota = container.write(cpu, cpu_cfs_quota_us=150000, cpu_cfs_period_us=100000)
    container.write(f"{cpu}/{below}", cpu_shares=1024)
    assert container.memory() == Limit(550 * MIB, f"{limit}/memory.limit_in_bytes")
    assert container.cores() == Limit(1.5, f"{quota}/cpu.cfs_quota_us")


def test_version_1_tells_of_limits_that_cannot_be_seen(container: Container) -> None:
    container.own = ["4:memory:/kubepods/pod7/c1"]
    container.mount(V1, "/sys/fs/cgroup/memory", root="/kubepods/pod7/c1", controllers="memory")
    folder = container.write(
        "/sys/fs/cgroup/memory",
        memory_limit_in_bytes=UNLIMITED,
        memory_usage_in_bytes=10 * MIB,
        memory_stat=stat(total=True, hierarchical_memory_limit=500 * MIB),
    )
    limit = container.memory()
    assert limit is not None
    assert limit.amount == 490 * MIB
    assert limit.source == f"hierarchical_memory_limit of {folder}/memory.stat"


@pytest.mark.parametrize(
    ("cgroup", "mounted", "counts"),
    [
        ("/", "/../..", True),  # mounted outside of our namespace: what is at the top is around us
        ("/inner", "/..", True),
        ("/docker/a", "/docker/b", False),  # somebody else's
        ("/docker/ab", "/docker/a", False),
        ("/../b", "/", False),  # moved out of the namespace
        ("/../b", "/..", True),
        ("/../b", "/../c", False),
    ],
)
def test_only_cgroups_around_this_process_count(
    container: Container, cgroup: str, mounted: str, counts: bool
) -> None:
    container.own = [f"0::{cgroup}"]
    container.mount(V2, "/sys/fs/cgroup", root=mounted)
    container.write("/sys/fs/cgroup", memory_max=64 * MIB, memory_current=0, cpu_max="100000 50000")
    assert (container.memory() is not None) is counts
    assert (container.cores() is not None) is counts


@pytest.mark.parametrize("quota", ["-1", "max", "", "0", "nonsense"])
def test_no_limit_at_all(container: Container, quota: str) -> None:
    assert memory_limit(container.root / "nowhere") is None
    assert core_limit(container.root / "nowhere") is None
    container.own = ["3:cpu:/", "2:memory:/", "0::/"]
    container.mount(V1, "/sys/fs/cgroup/cpu", controllers="cpu")
    container.mount(V1, "/sys/fs/cgroup/memory", controllers="memory")
    container.mount(V2, "/sys/fs/cgroup/unified")
    container.write("/sys/fs/cgroup/cpu", cpu_cfs_quota_us=quota, cpu_cfs_period_us="0")
    container.write("/sys/fs/cgroup/unified", cpu_max=f"{quota} 100000", memory_max="max")
    container.write("/sys/fs/cgroup/memory", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=5)
    assert container.memory() is None
    assert container.cores() is None


@pytest.fixture
def real_cgroup() -> Iterator[tuple[Path, int]]:
    """A cgroup with 512 MiB below that of this process, and its version."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            version, top = (2, "/sys/fs/cgroup") if not controllers else (1, "/sys/fs/cgroup/memory")
            folder = Path(f"{top}{path}", "flannel-test")
            try:
                folder.mkdir()
            except OSError:
                continue
            limit = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
            try:
                limit.write_text(str(512 * MIB))
                yield folder, version
                return
            except OSError:  # a cgroup without control of memory
                continue
            finally:
                while (folder / "cgroup.procs").read_text().strip():
                    time.sleep(0.05)
                folder.rmdir()
    pytest.skip("cannot make a cgroup, which takes root's rights and a writable /sys/fs/cgroup")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups")
def test_a_real_cgroup(real_cgroup: tuple[Path, int]) -> None:
    folder, _ = real_cgroup
    code = f"""
from pathlib import Path
Path({str(folder / "cgroup.procs")!r}).write_text("0")
from flannel_pl.launch.cgroups import memory_limit
empty = memory_limit()
held = b"x" * {100 * MIB}
full = memory_limit()
assert empty.source == full.source and empty.source.startswith({str(folder)!r}), (empty, full)
assert 0.9 * {512 * MIB} < empty.amount < {512 * MIB}, empty
assert 95 * {MIB} < empty.amount - full.amount < 115 * {MIB}, (empty, full)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups")
def test_nothing_is_killed_where_memory_is_short(
    real_cgroup: tuple[Path, int], small_data: SmallData, tmp_path: Path
) -> None:
    folder, version = real_cgroup
    limit = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
    limit.write_text(str((2000 if torch.version.cuda else 1000) * MIB))
    words = ["fit", *small_data.arguments, "--experiment.seeds", "1..4", "--trainer.max_steps", "30"]
    code = f"""
import sys
from pathlib import Path
Path({str(folder / "cgroup.procs")!r}).write_text("0")
from flannel_pl.__main__ import main
sys.exit(main([*{words!r}, "--experiment.output_dir", {str(tmp_path)!r}]))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    killed = (folder / ("memory.events" if version == 2 else "memory.oom_control")).read_text()
    assert "oom_kill 0" in killed
    assert "memory may have run out" not in answer.stdout
