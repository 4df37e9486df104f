"""The keys of a config with type, default and meaning, from the parser that reads configs."""

import dataclasses
from typing import Any

from flannel_pl.config import TrainerConfig
from flannel_pl.training.cli import parser_of
from generate.words import argument, cell, table, value

GROUPS = {
    "experiment": "Which runs there are, and where their files go.",
    "launch": "Which devices the runs use, and how they share them.",
    "launch.slurm": "What to ask Slurm for, with `launch.launcher slurm`. Other launchers that are installed "
    "have [keys of their own](launchers.md).",
    "model": "The default model, `TiedGPT2`. With `--model my_lab.MyModule` the keys are its "
    "[arguments](own-model.md).",
    "data": "The default data, `FlannelData`. With `--data my_lab.MyData` the keys are its arguments.",
    "recorder": "What is recorded of a step, and how often.",
}
"""Group -> what it is about; the keys in it are the parser's."""

HEAD = ("key", "meaning")


def page() -> str:
    """Returns a section for each group."""
    text = ""
    for group, about in GROUPS.items():
        rows = [_row(action) for action in _actions() if action.dest.rpartition(".")[0] == group]
        text += f"## {group}\n\n{about}\n\n{table(HEAD, [row for row in rows if row])}\n"
    return text + _trainer()


def options() -> dict[str, str]:
    """Returns what fit and plan take besides the keys: option -> meaning."""
    told = {}
    for action in _actions():
        if "." not in action.dest and action.option_strings and action.dest not in (*GROUPS, "trainer"):
            names = ", ".join(action.option_strings)
            told[names] = str(action.help or "").replace("%(default)s", str(action.default))
    return told


def _actions() -> list[Any]:
    return list(parser_of()._actions)


def _row(action: Any) -> tuple[str, str] | None:
    if not hasattr(action, "_typehint") or action.dest.endswith(".help"):
        return None
    first = argument(action.dest, action._typehint, action.default, is_required=action.required)
    return first, cell(str(action.help or ""))


def _trainer() -> str:
    names = [one.name for one in dataclasses.fields(TrainerConfig) if one.name != "arguments"]
    found = {action.dest: action for action in _actions()}
    rows = [
        (f"`trainer.{name}`", value(found[f"trainer.{name}"].default))
        for name in names
        if f"trainer.{name}" in found
    ]
    return (
        "## trainer\n\nThe arguments of Lightning's `Trainer`, all of them; `flannel-pl fit --help` explains "
        "each. They apply to every run. `trainer.accelerator` and `trainer.devices` say which devices the "
        "launcher may use, never that one run is split. flannel-pl itself goes by these:\n\n"
        f"{table(('key', 'default'), rows)}\n"
    )
