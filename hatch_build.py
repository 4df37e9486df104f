"""What hatchling does beyond pyproject.toml: it leaves out what git does not know, and packs the configs."""

import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface[Any]):
    """Leaves untracked files out of wheel and sdist, and puts `configs/` into the wheel.

    An editable install has the checkout's own `configs/`: a copy of it would grow old.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called by hatchling before it collects files.

        Args:
            version: Kind of wheel or sdist, "standard" or "editable".
            build_data: What hatchling will build from.
        """
        if version == "editable":
            return
        root = Path(self.root)
        untracked = _untracked(root, self.target_name)
        if self.target_name == "wheel":
            configs = [file.relative_to(root).as_posix() for file in sorted(root.glob("configs/*.yaml"))]
            build_data["force_include"] |= {
                name: f"flannel_pl/{name}" for name in configs if name not in untracked
            }
        target = self.build_config.target_config
        excluded = target.get("exclude", self.build_config.default_exclude())
        target["exclude"] = [*excluded, *map(_pattern, untracked)]


def _untracked(root: Path, target: str) -> list[str]:
    """Returns the files, and the folders with a slash behind them, that git does not know."""
    if not (root / ".git").exists():  # an unpacked sdist, in which everything belongs
        return []
    command = ["git", "-C", str(root), "ls-files", "--others", "--directory", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        if target == "sdist":
            raise RuntimeError(
                f"Only git knows what belongs into an sdist, and it cannot tell: {error}"
            ) from error
        return []
    return [name for name in listed.split("\0") if name]


def _pattern(name: str) -> str:
    """Returns the line of a .gitignore that means exactly this file or folder."""
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", name)
