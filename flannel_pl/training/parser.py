"""The parser of a config of some classes: how it reads and writes, and what it says of a mistake."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from flannel_pl.arguments import dumps, loads
from flannel_pl.errors import UserError
from flannel_pl.hints import listed, meant
from flannel_pl.training.classes import (
    DEFAULTS,
    as_lightning_writes_it,
    class_paths,
    normal_form,
    without_classes,
)
from flannel_pl.training.refusals import refusal

NAMES_OF_FILES = {"data": ("corpus_path", "tokenizer_path", "mask_path"), "recorder": ("tokens",)}
"""Group -> its keys that name files to read."""

TOKEN_SETS = ("all", "dead", "live")
"""What `recorder.tokens` may be besides the name of a file."""


class FlannelParser(LightningArgumentParser):
    """A parser whose complaints are one line and end in a hint, instead of a page of usage.

    It knows the arguments of one class of model and one of data; what names classes in a config is no
    business of its.
    """

    classes: Mapping[str, str] = {}
    """Group -> the class that its arguments are of, where that is not the default one."""

    @property
    def lists(self) -> set[str]:
        """Keys of the recorder that take a list of names."""
        names = ("tensors", "live", "quantities")
        return {f"recorder.{name}{sign}" for name in names for sign in ("", "+")}

    @override
    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Namespace:
        """Reads a config as UTF-8, whatever the locale is."""
        if str(path) == "-":
            return cast("Namespace", super().parse_path(path, *arguments, **options))
        file = Path(path)
        content = os.fsdecode(file.read_bytes())  # as this process has other texts
        with contextlib.suppress(yaml.YAMLError):  # which is going to be said
            said = loads(content)
            if isinstance(said, dict) and not file.is_file():
                self._refuse_classes(said)
            if (
                isinstance(said, dict)
                and (normal := _beside(without_classes(normal_form(said, folder=file.parent)), file.parent))
                != said
            ):
                content = dumps(normal)
        with contextlib.chdir(file.parent):
            return cast("Namespace", self.parse_string(content, file.name, *arguments, **options))

    def _refuse_classes(self, said: dict[str, Any]) -> None:
        """Refuses a class in what can be read only once, which is too late to choose the parser of it."""
        for group, path in zip(DEFAULTS, class_paths(normal_form(said)), strict=True):
            if path is not None and path != self.classes.get(group):
                raise UserError(
                    f"the config names {path} for {group}, and is no file that can be read twice; name the "
                    f"class on the command line: --{group} {path}"
                )

    @override
    def dump(self, *arguments: Any, **options: Any) -> str:
        """Returns a config as YAML, with the classes that it is of."""
        text = str(super().dump(*arguments, **options))
        if not self.classes:
            return text
        config: dict[str, Any] = loads(text)
        for group, path in self.classes.items():
            config[group] = {"class_path": path, **config.get(group, {})}
        return dumps(as_lightning_writes_it(config))

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        types = {action.dest: action._typehint for action in self._actions if hasattr(action, "_typehint")}
        found = re.fullmatch(r"the following arguments are required: ((?:model|data)\..+)", message.strip())
        if found is not None:
            needed = re.split(r",\s*", found[1])
            classes = sorted({self.classes.get(key.partition(".")[0], "") for key in needed} - {""})
            options = " ".join(f"--{key} ..." for key in needed)
            raise UserError(f"{' and '.join(classes)} needs {', '.join(needed)}; give {options}")
        text, hint = refusal(message, types), self._hint(" ".join(message.split()))
        raise UserError(text + hint * (hint not in text))

    def _hint(self, message: str) -> str:
        if "Logger" in message and "save_dir" in message:
            return "; give the logger a folder, e.g. init_args: {save_dir: .}, which is that of the run"
        if match := re.search(r"argument (--[\w.]+): expected one argument", message):
            return f"; give it one, e.g. {match[1]}=-x where it begins with a dash"
        for pattern in (
            r"unrecognized arguments: --?([\w.]+)",
            r"ambiguous option: --?([\w.]+)",
            r"Option '([\w.]+)' is not accepted",
            r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        ):
            if match := re.search(pattern, message):
                return self._nearest(".".join(match.groups()))
        return ""

    def _nearest(self, unknown: str) -> str:
        known = [*self.get_defaults(skip_validation=True).keys(), "config", "print_config", "help"]
        if hint := meant(unknown, known):
            return hint
        if path := self.classes.get(group := unknown.partition(".")[0]):
            there = ", ".join(key for key in known if key.startswith(f"{group}."))
            return f"; {path} has {there or 'no arguments'}"
        return listed(unknown, known)


def _beside(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a config in which the names of files that lie in a folder begin there.

    A config names files as they lie beside it, wherever one calls from; what is not there is left to the
    working folder.
    """
    found = dict(said)
    for group, names in NAMES_OF_FILES.items():
        if isinstance(keys := said.get(group), Mapping):
            texts = {name: keys[name] for name in names if isinstance(keys.get(name), str)}
            if texts.get("tokens") in TOKEN_SETS:
                del texts["tokens"]
            there = {name: folder / text for name, text in texts.items() if _is_file(folder / text)}
            found[group] = {**keys, **{name: str(path.absolute()) for name, path in there.items()}}
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # it can be the name of none
        return False
