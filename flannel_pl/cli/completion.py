"""Completion for shells: a script that knows verbs, keys and the configs that come with the package."""

import argparse
from collections.abc import Mapping
from typing import Any, Literal

from flannel_pl.cli.keys import known
from flannel_pl.cli.verbs import PURPOSES
from flannel_pl.errors import UserError
from flannel_pl.shipped import shipped_configs


def completion_verb(shell: Literal["bash", "zsh", "fish", "tcsh"]) -> None:
    """Prints a script that completes verbs, keys and files, for a shell's own folder of such scripts.

    For bash, e.g.: flannel-pl completion bash > ~/.local/share/bash-completion/completions/flannel-pl

    Args:
        shell: Which one.

    Raises:
        UserError: If shtab, which makes it, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion needs shtab, which is not installed: pip install 'flannel-pl[completion]'"
        ) from None
    print(shtab.complete(_parser(shtab.FILE), shell=shell))


def _parser(files: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Returns a parser that stands for all verbs, to be looked at and never used.

    Args:
        files: What has an argument completed by names of files.
    """
    parser = argparse.ArgumentParser("flannel-pl")
    verbs = parser.add_subparsers(dest="verb")
    for verb, purpose in PURPOSES.items():
        one: Any = verbs.add_parser(verb, help=purpose)
        if verb in ("fit", "plan"):
            one.add_argument("--config").complete = files
            for key, said in known()["keys"].items():
                one.add_argument(f"--{key}", help=said["help"].replace("%", "%%"))
        if verb == "init":
            one.add_argument("name", choices=list(shipped_configs()))
        else:
            one.add_argument("path", nargs="*").complete = files
    return parser
