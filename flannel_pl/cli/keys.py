"""What `fit` and `plan` know of their keys before torch and Lightning are imported: help, and misspelt keys.

It stands in `keys.json`, which is made of the parser by `python -m flannel_pl.cli.keys`. A test tells when it
is no longer the parser's.
"""

import dataclasses
import difflib
import functools
import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flannel_pl.config import is_inline
from flannel_pl.errors import UserError
from flannel_pl.hints import listed, meant
from flannel_pl.plugins import launcher_settings, launchers
from flannel_pl.small_files import read_small

FILE = Path(__file__).with_name("keys.json")

GROUPS = ("experiment", "launch", "model", "data", "recorder")
"""Those that people change, in the order of the help; there is also `trainer`, which is Lightning's."""

WIDTH = 116
"""Characters in a line of the help."""

_OTHERS = ("config", "print_config", "help", "seed_everything")
_OF_CLASSES = ("class_path", "init_args", "help")

_HEAD = """\
usage: flannel-pl {verb} [CONFIG] [--GROUP.KEY VALUE ...]

{purpose}

  flannel-pl {verb} flannel3 --experiment.seeds 1..4 --trainer.max_steps 200
  flannel-pl {verb} flannel3 --recorder.tensors embeddings,losses --recorder.tokens dead
  flannel-pl {verb} my.yaml --experiment.sweep '{{model.learning_rate: [1e-3, 3e-3]}}'
  flannel-pl {verb} --model my_lab.MyModule --data my_lab.MyData --recorder.parameters all
"""

_FOOT = """\
CONFIG is a YAML file, or one that comes with flannel-pl: flannel1, flannel3, quickstart; `flannel-pl init
NAME` copies one. --help.GROUP explains the keys of a group in full, --help.trainer those of Lightning's
Trainer, --help.all all of them; --model my_lab.MyModule --help those of a class. --print_config prints all.
"""


@functools.cache
def known() -> dict[str, Any]:
    """Returns the content of `keys.json`: `lightning`, its version; `keys`, and of each default and help."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def made_of_the_code() -> dict[str, Any]:
    """Returns what `keys.json` should hold."""
    from flannel_pl.training.cli import parser_of

    keys = {}
    for action in parser_of()._actions:
        group, _, name = action.dest.partition(".")
        is_key = name and group in (*GROUPS, "trainer") and not name.endswith("help")
        is_key = is_key and getattr(action, "_typehint", action.type) is not None  # else it is a group
        if is_key and not (group == "data" and action.default == "==SUPPRESS=="):  # linked to the model's
            default = action.default
            plain = default if isinstance(default, int | float | list | dict | None) else str(default)
            keys[action.dest] = {"default": plain, "help": " ".join((action.help or "").split())}
    return {"lightning": importlib.metadata.version("lightning"), "keys": keys}


def asked_help(verb: str, purpose: str, words: Sequence[str]) -> str | None:
    """Returns the help that is asked for, if it takes no imports.

    Args:
        verb: `fit` or `plan`.
        purpose: What it does, in a line.
        words: The command line behind it.
    """
    if not {"-h", "--help"} & set(words) or _classes_of(words):
        return None
    parts = [_HEAD.format(verb=verb, purpose=f"{purpose[0].upper()}{purpose[1:]}.")]
    for group in GROUPS:
        keys = {key: said for key, said in known()["keys"].items() if key.partition(".")[0] == group}
        lines = [*_lines(keys), *(_foreign_lines() if group == "launch" else [])]
        parts.append("".join(f"{line}\n" for line in lines))
    return "\n".join((*parts, _FOOT)).rstrip("\n")


def help_of_group(group: str) -> str:
    """Returns every key of a group, or of `all`, with its whole help.

    Raises:
        UserError: If there is no such group.
    """
    groups = (*GROUPS, "trainer")
    if group not in (*groups, "all"):
        nearest = difflib.get_close_matches(group, groups, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"--help.{group}: there is no such group; they are {', '.join(groups)}, all{hint}")
    keys = {**known()["keys"], **_foreign_keys()}
    return "\n".join(
        f"--{key} {_shown(said['default'])}\n    {said['help']}"
        for key, said in keys.items()
        if group in ("all", key.partition(".")[0])
    )


def refuse_unknown(words: Sequence[str]) -> None:
    """Refuses a key that there is not, on the command line or in a config.

    What may be a key is left to the parser: of a class of one's own, a launcher's that is installed, or of
    another version of Lightning.

    Raises:
        UserError: Names the key that was meant.
    """
    own = _classes_of(words)
    for word, following in itertools.pairwise([*words, ""]):
        option, has_value, value = word.partition("=")
        if option in ("--config", "-c"):
            _refuse_in_config(value if has_value else following, own)
        elif option == "--experiment.sweep":
            _refuse_swept(_content(value if has_value else following), own)
        elif option.startswith("--"):
            key = option.removeprefix("--").removesuffix("+")
            if not _may_be(key, own):
                shown = word if has_value or following.startswith("--") else f"{word} {following}".rstrip()
                raise UserError(f"unrecognized arguments: {shown}{_hint(key)}")


def _refuse_in_config(name: str, own: set[str]) -> None:
    content = _content(name)
    if own | _classes_in(content) != own:
        return
    experiment = content.get("experiment")
    if isinstance(experiment, Mapping) and isinstance(experiment.get("sweep"), Mapping):
        _refuse_swept(experiment["sweep"], own)
    for group, keys in content.items():
        for key in keys if group in (*GROUPS, "trainer") and isinstance(keys, Mapping) else ():
            if not _may_be(f"{group}.{key}", own):
                raise UserError(f"Group '{group}' does not accept option '{key}'{_hint(f'{group}.{key}')}")


def _refuse_swept(sweep: Mapping[str, Any], own: set[str]) -> None:
    for key in sweep:
        if str(key).partition(".")[0] in ("model", "data", "trainer") and not _may_be(str(key), own):
            raise UserError(f"experiment.sweep has {key}, which cannot be swept{_hint(str(key))}")


def _content(name: str) -> dict[str, Any]:
    """Returns what is in a config; nothing of what its reader is going to refuse."""
    import yaml

    try:
        text = name if is_inline(name) else read_small(Path(name))
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return content if isinstance(content, dict) else {}
    except Exception:
        return {}


def _classes_of(words: Sequence[str]) -> set[str]:
    """Returns for which of model and data a class is named."""
    found = set[str]()
    for word, following in itertools.pairwise([*words, ""]):
        option, has_value, value = word.partition("=")
        group, _, name = option.removeprefix("--").partition(".")
        if group in ("model", "data") and (not name or name.partition(".")[0] in _OF_CLASSES):
            found.add(group)
        elif option in ("--config", "-c"):
            found |= _classes_in(_content(value if has_value else following))
    return found


def _classes_in(content: Mapping[str, Any]) -> set[str]:
    groups = {group: content.get(group) for group in ("model", "data")}
    return {
        group
        for group, said in groups.items()
        if isinstance(said, str) or (isinstance(said, Mapping) and {"class_path", "init_args"} & said.keys())
    }


def _may_be(key: str, own: set[str]) -> bool:
    group, _, rest = key.partition(".")
    if not rest:
        return group in (*GROUPS, "trainer", *_OTHERS)
    if group in (*own, "help"):
        return True
    inside = {one.split(".")[1] for one in known()["keys"] if one.partition(".")[0] == group}
    name = rest.partition(".")[0].removesuffix("+")
    if name in inside or name in ("help", "init_args", "class_path"):
        return True
    if group == "trainer":
        return bool(importlib.metadata.version("lightning") != known()["lightning"])
    if group == "launch":
        return bool(importlib.metadata.entry_points(group="flannel_pl.launchers"))
    return group == "data" and name in ("max_seq_len", "vocab_size")  # of which the parser says more


def _hint(key: str) -> str:
    keys = list(known()["keys"])
    return meant(key, keys) or listed(key, keys)


def _foreign_lines() -> list[str]:
    """Returns a line for each launcher that somebody else has added."""
    return [
        f"{f'  --launch.{name}.KEY':<45} Of the launcher {name}, which is installed; see --help.launch."
        for name, point in launchers().items()
        if not point.value.startswith("flannel_pl.")
    ]


def _foreign_keys() -> dict[str, Any]:
    """Returns the keys of launchers that somebody else has added, as `known` has those of ours."""
    from docstring_parser import parse_from_object

    found = {}
    for name, settings in launcher_settings().items():
        said = {one.arg_name: one.description for one in parse_from_object(settings).params}
        for one in dataclasses.fields(settings):
            default = getattr(settings(), one.name)
            help_text = " ".join((said.get(one.name) or "").split())
            found[f"launch.{name}.{one.name}"] = {"default": default, "help": help_text}
    return {key: said for key, said in found.items() if key not in known()["keys"]}


def _lines(keys: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields a line for each key: its name, its default, and the beginning of its help."""
    for key, said in keys.items():
        start = f"  --{key} {_shown(said['default'])}"
        line = f"{start:<45} {said['help']}"
        yield line if len(line) <= WIDTH else f"{line[: WIDTH - 3].rsplit(' ', 1)[0]} ..."


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return f"{default[0]},..." if default else "[]"
    return json.dumps(default) if not isinstance(default, str) else default


if __name__ == "__main__":
    FILE.write_text(json.dumps(made_of_the_code(), indent=1) + "\n", encoding="utf-8")
