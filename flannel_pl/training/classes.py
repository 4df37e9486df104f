"""Which module and which data a config means: classes of anybody's, or the default ones.

A group of a config has one normal form, with the arguments as its keys: `{learning_rate: 1e-3}`, and with
`class_path` beside them where the class is not the default one. LightningCLI's `{class_path: ..., init_args:
{...}}`, a class in place of the group, and the default class by its name are other words for it.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from flannel_pl import provenance
from flannel_pl.arguments import loads
from flannel_pl.errors import UserError
from flannel_pl.models.flannel_data import FlannelData
from flannel_pl.models.tied_gpt2 import TiedGPT2
from flannel_pl.small_files import read_small

DEFAULTS: dict[str, type] = {"model": TiedGPT2, "data": FlannelData}
"""Group of a config -> the class that is meant where none is named."""

MAX_CONFIG_BYTES = 2**24

_HERE = Path()

_BASES: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_class(text: Any) -> bool:
    """Tells whether a text in the place of a group is a class, and not the name of a file with its keys."""
    if not isinstance(text, str) or Path(text).suffix in (".yaml", ".yml", ".json") or Path(text).is_file():
        return False
    return bool(_IMPORT_PATH.fullmatch(text)) or text in {one.__name__ for one in DEFAULTS.values()}


def read_config(path: Path) -> dict[str, Any]:
    """Returns what is in a config file; nothing of what cannot be read, which its reader will say."""
    with contextlib.suppress(Exception):
        content = loads(os.fsdecode(read_small(path, max_bytes=MAX_CONFIG_BYTES)))
        return dict(content) if isinstance(content, dict) else {}
    return {}


def class_paths(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Returns the classes of model and data that a config in its normal form names; None for the defaults."""
    model, data = (config.get(group, {}).get("class_path") for group in DEFAULTS)
    return model, data


def has_corpus(data: object) -> bool:
    """Tells whether a data module trains on a text: the default one, or one that is made from it."""
    return isinstance(data, DEFAULTS["data"])


def is_own(config: Mapping[str, Any]) -> bool:
    """Tells whether a config in its normal form names a class."""
    return any(path is not None for path in class_paths(config))


def without_classes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config in its normal form with nothing but arguments in the groups of classes."""
    groups = {group: {**config[group]} for group in DEFAULTS if isinstance(config.get(group), Mapping)}
    for group in groups.values():
        group.pop("class_path", None)
    return {**config, **groups}


def normal_form(config: Mapping[str, Any], *, folder: Path = _HERE) -> dict[str, Any]:
    """Returns a config as it is read from a file, with model and data in their normal form.

    Args:
        config: What is read.
        folder: Where names of further files begin.
    """
    # A group whose keys are all commented out is as good as none.
    config = {group: keys for group, keys in config.items() if keys is not None}
    found = {group: normal_group(config[group], group, folder) for group in DEFAULTS if group in config}
    return {**config, **found}


def normal_group(value: Any, group: str, folder: Path = _HERE) -> Any:
    """Returns the normal form of what stands in a config for model or data.

    Args:
        value: Arguments, class_path and init_args, a class, or the name of a file with one of these; anything
            else is returned as it is.
        group: `model` or `data`.
        folder: Where that name begins.
    """
    if is_class(value):
        value = {"class_path": value}
    if isinstance(value, str):
        inside = read_config(folder / value)
        value = inside if {"class_path", "init_args"} & inside.keys() else value
    if not isinstance(value, Mapping):
        return value
    inner = value.get("init_args")
    flat = {key: one for key, one in value.items() if key != "init_args" or not isinstance(inner, Mapping)}
    flat |= inner if isinstance(inner, Mapping) else {}
    if "init_args" in flat and flat["init_args"] is None:
        del flat["init_args"]
    if "class_path" in flat and (flat["class_path"] is None or find_class(flat["class_path"], group) is None):
        del flat["class_path"]
    return flat


def as_lightning_writes_it(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config in its normal form as LightningCLI knows it: with init_args where a class is named."""
    result = dict(config)
    for group in DEFAULTS:
        if "class_path" in (said := config.get(group, {})):
            arguments = {key: value for key, value in said.items() if key != "class_path"}
            result[group] = {"class_path": said["class_path"], "init_args": arguments}
    return result


def find_class(path: Any, group: str) -> type | None:
    """Returns the class behind an import path; None if it is the default one.

    A module that is neither installed nor in PYTHONPATH is looked for in the working folder, too.

    Args:
        path: e.g. my_lab.MyModule.
        group: `model` or `data`.

    Raises:
        UserError: If there is none, or it is none that Lightning trains, or trains with.
    """
    default, base = DEFAULTS[group], _BASES[group]
    if path == default.__name__:
        return None
    if not isinstance(path, str) or not _IMPORT_PATH.fullmatch(path):
        raise UserError(f"{group}.class_path is {path!r}, expected an import path, e.g. my_lab.MyClass")
    module_name, _, name = path.rpartition(".")
    module = _import(module_name, path, group)
    found = getattr(module, name, None)
    if found is None:
        classes = {key: one for key, one in vars(module).items() if isinstance(one, type)}
        there = [
            key for key, one in classes.items() if issubclass(one, base) and one.__module__ == module_name
        ]
        nearest = difflib.get_close_matches(name, [*there, *vars(module)], n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; it has {', '.join(there) or 'none'}"
        raise UserError(
            f"{group}.class_path is {path}, but {module_name} has no {name}{hint}{_in_its_way(module_name)}"
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{group}.class_path is {path}, expected a class made from lightning.pytorch.{base.__name__}"
            + _other_package(found)
        )
    if found is default:
        return None
    note_source_of(found)
    return found


def _import(name: str, path: str, group: str) -> Any:
    top = name.partition(".")[0]
    here = Path.cwd()
    try:
        if importlib.util.find_spec(top) is None:
            if not ((here / f"{top}.py").is_file() or (here / top).is_dir()):
                raise UserError(
                    f"{group}.class_path is {path}, but there is no module {top}; it is looked for among "
                    f"what is installed, in PYTHONPATH, and in the working folder, {here}"
                )
            sys.path.append(str(here))  # last: nothing there stands in for what is installed
            importlib.invalidate_caches()
        return importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{group}.class_path is {path}, but there is no module {error.name}") from error
        raise UserError(_failed(name, path, group, error)) from error
    except Exception as error:
        raise UserError(_failed(name, path, group, error)) from error


def _in_its_way(name: str) -> str:
    """Says so if an installed module hides one of the working folder."""
    top = name.partition(".")[0]
    here, found = Path.cwd() / f"{top}.py", str(getattr(sys.modules.get(top), "__file__", ""))
    if not here.is_file() or found == str(here):
        return ""
    return f". That is {found}, and {here} is hidden by it; give that file another name"


def _failed(name: str, path: str, group: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename[0] != "<"]
    own = [frame for frame in frames if not frame.filename.startswith(str(Path(__file__).parents[1]))]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    what = f"{type(error).__name__}: {error}{where}"
    return f"{group}.class_path is {path}, but importing {name} fails with {what}"


def _other_package(found: Any) -> str:
    bases = getattr(found, "__mro__", ())
    if any(one.__module__.startswith("pytorch_lightning.") for one in bases):
        return (
            "; this one is made from pytorch_lightning's, which is another: import lightning.pytorch instead"
        )
    return ""


def note_source_of(found: type) -> None:
    """Has the files that a class, and those it is made from, are in count as code that decides bits."""
    for one in found.__mro__:
        top = one.__module__.partition(".")[0]
        if top not in ("lightning", "torch", "flannel_pl", "builtins"):
            try:
                file = inspect.getsourcefile(one)
            except TypeError:
                file = None
            if file is not None and "site-packages" not in file:
                provenance.note_source(one.__module__, Path(file))
