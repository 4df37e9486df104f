"""Which versions are needed, and with which it is tested."""

import re
import tomllib

from generate.outside import ROOT
from generate.words import table


def page() -> str:
    """Returns a table of what the package needs, from pyproject.toml and constraints.txt."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {
        _plain(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }
    rows = []
    for one in needed:
        found = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)(?:,<([\w.]+))?$", one)
        if found is None:
            raise ValueError(f"a dependency of pyproject.toml is {one!r}, expected name>=version,<version")
        rows.append((found[1], found[2], found[3] or "", pinned[_plain(found[1])]))
    return table(("package", "from", "below", "tested with"), rows)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
