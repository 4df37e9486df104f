"""Configs by name: those that come with the package, to run or to copy."""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from flannel_pl.errors import RunError, UserError
from flannel_pl.shipped import shipped_configs


def with_config(words: Sequence[str]) -> list[str]:
    """Returns a command line whose first word may be a config, with `--config` before it.

    Args:
        words: What is behind `fit` or `plan`: a file or the name of a config that comes with flannel-pl, then
            options.

    Raises:
        UserError: If there is no such config.
    """
    if not words or words[0].startswith(("-", "{")):
        return list(words)
    name, *rest = words
    shipped = shipped_configs()
    if not Path(name).is_file() and Path(f"{name}.yaml").is_file():
        return ["--config", f"{name}.yaml", *rest]  # maybe a copy that `init` has made
    if not Path(name).is_file() and name in shipped:
        return ["--config", str(shipped[name]), *rest]
    if not Path(name).exists():
        nearest = difflib.get_close_matches(name.lower().removesuffix(".yaml"), shipped, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        there = f"one that comes with flannel-pl: {', '.join(shipped)}"
        raise UserError(f"there is no config {name}; give a file, or {there}{hint}")
    return ["--config", name, *rest]


def init_verb(name: str, out: Path | None = None) -> None:
    """Copies a config that comes with flannel-pl, with its comments, to be changed.

    Args:
        name: Which one, e.g. flannel3 or quickstart.
        out: The file to make; null = NAME.yaml in the current folder.

    Raises:
        UserError: If there is no such config, or the file is there.
        RunError: If it cannot be written.
    """
    shipped = shipped_configs()
    if name not in shipped:
        raise UserError(f"{name!r} is no config of flannel-pl; there are {', '.join(shipped)}")
    file = Path(f"{name}.yaml") if out is None else out
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(shipped[name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{file} is there already; choose another name with --out") from None
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}. Choose another place with --out.") from error
    print(f"{file}: change what you like, then: flannel-pl fit {shlex.quote(str(file))}")
