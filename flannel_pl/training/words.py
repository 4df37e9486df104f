"""The words of a command line, put into the order and the form in which the parser takes them."""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flannel_pl.arguments import dumps, loads
from flannel_pl.config import is_inline
from flannel_pl.errors import UserError
from flannel_pl.small_files import read_small
from flannel_pl.training.classes import (
    DEFAULTS,
    MAX_CONFIG_BYTES,
    is_class,
    normal_form,
    normal_group,
    read_config,
    without_classes,
)

RUN_FOLDER = "."
"""A logger's save_dir that stands for the folder of the run."""


class Words:
    """The words of a command line, with model and data in their normal form.

    Args:
        words: The command line behind the verb, those of `--config` first: the last one that names a class
            counts.

    Raises:
        UserError: If a class that is named is not there.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.rest: list[str] = []
        """What is left for the parser of these classes: arguments only."""

        self.classes: dict[str, str | None] = dict.fromkeys(DEFAULTS)
        """Group -> the class that is asked for; None for the default one."""

        left = iter(words)
        for word in left:
            self._take(word, left)

    def _take(self, word: str, left: Iterator[str]) -> None:
        key, has_value, value = word.partition("=")
        group, _, name = key.removeprefix("--").partition(".")
        if key in ("--config", "-c"):
            value = value if has_value else next(left, "")
            if is_inline(value):
                self._take_inline(value)
                return
            self.rest += [word] if has_value else [word, value]
            for one, said in read_config(Path(value)).items():
                if one in DEFAULTS and Path(value).is_file():
                    self._note(one, normal_group(said, one, Path(value).parent), said)
        elif not key.startswith("--") or group not in DEFAULTS:
            self.rest.append(word)
        elif name == "help":
            if path := value or next(left, ""):
                self._group(group, path)
            self.rest.append("--help")
        elif name in ("", "class_path", "init_args"):
            given = value if has_value else next(left, None)
            if given is None:
                self.rest.append(f"--{group}")  # of which the parser says that it lacks something
                return
            value = given
            self._group(group, {"class_path": value} if name == "class_path" else value, word=word)
        else:
            self.rest.append(f"--{group}.{name.removeprefix('init_args.')}{has_value}{value}")

    def _take_inline(self, text: str) -> None:
        """Takes the content of a config in place of the name of one."""
        try:
            said = loads(text)
        except yaml.YAMLError as error:
            raise UserError(f"--config {text[:60]!r} cannot be read as YAML: {error}") from error
        if not isinstance(said, dict):
            raise UserError(f"--config {text[:60]!r} has no keys, expected e.g. {{model: {{n_layer: 2}}}}")
        for group in DEFAULTS:
            if group in said:
                self._note(group, normal_group(said[group], group), said[group])
        self.rest += ["--config", dumps(without_classes(normal_form(said)))]

    def _group(self, group: str, value: Any, word: str = "") -> None:
        """Takes what is given for a whole group."""
        said = value
        if isinstance(value, str) and is_inline(value):
            with contextlib.suppress(Exception):
                said = loads(value)
        normal = normal_group(said, group)
        self._note(group, normal, said)
        if not isinstance(normal, Mapping):
            self.rest += [f"--{group}", value]
            return
        arguments = {key: one for key, one in normal.items() if key != "class_path"}
        if arguments or not (isinstance(said, str) or "class_path" in said):
            self.rest += [f"--{group}", dumps(arguments)]

    def _note(self, group: str, normal: Any, said: Any) -> None:
        if isinstance(normal, Mapping) and "class_path" in normal:
            self.classes[group] = str(normal["class_path"])
        elif is_class(said) or (isinstance(said, Mapping) and "class_path" in said):
            self.classes[group] = None


def check_config_file(name: str) -> None:
    """Refuses what would be read for ever; what a shell makes of <(command) is no such thing."""
    if not name.strip() or name.startswith("--"):
        raise UserError("--config names no file; give one, e.g. --config my.yaml")
    path = Path(name)
    if is_inline(name) or not path.exists() or name.startswith("/dev/fd/"):
        return
    try:
        read_small(path, max_bytes=MAX_CONFIG_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"cannot read the config {path}: {what}") from error


def config_first(arguments: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front, because what comes later wins."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config", "-c"):
            files += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            others.append(argument)
    return files + others


def with_lists(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """Lets a list be given by commas, `embeddings,losses`, and one of one member as that alone.

    Args:
        arguments: The words of a command line.
        lists: Which keys take a list of texts.
    """
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, has_value, value = argument.partition("=")
        if option.removeprefix("--") not in lists or not option.startswith("--"):
            result.append(argument)
            continue
        if not has_value:
            value = next(rest, "--")
            if value.startswith("--"):  # it was forgotten, which the parser says
                result += [option, *([value] if value != "--" else [])]
                continue
        is_plain = value.strip() != "" and value[0] not in "[{\"'" and value.lower() not in ("null", "~")
        members = [member.strip() for member in value.split(",") if member.strip()]
        result.append(f"{option}={json.dumps(members) if is_plain else value}")
    return result


def with_logger_folders(arguments: Sequence[str]) -> list[str]:
    """Gives a logger that is asked for by name alone the folder that its class insists on."""
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        result.append(argument)
        match = re.fullmatch(r"--trainer\.logger(?:\.class_path|\+)?(?:=(.+))?", argument)
        if match:
            name = match[1] or next(rest, "")
            if not match[1]:
                result.append(name)
            if name.endswith(("TensorBoardLogger", "CSVLogger")):
                result.append(f"--trainer.logger.save_dir={RUN_FOLDER}")
    return result
