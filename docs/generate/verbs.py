"""The verbs with their arguments and exit codes, from their signatures and docstrings."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from docstring_parser import parse

from flannel_pl import __main__ as program
from generate import keys
from generate.words import argument, cell, table

HEAD = ("argument", "meaning")


def page() -> str:
    """Returns a section for each verb, and one about exit codes."""
    text = ""
    for verb, (purpose, start) in program.VERBS.items():
        text += f"## `{verb}` {{#{verb}}}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n"
        called = _function_of(start)
        text += _of_function(verb, *called) if called is not None else _of_config(verb)
    return f"{text}{_exit_codes()}"


@contextlib.contextmanager
def _listening() -> Iterator[list[tuple[Callable[..., Any], str | None]]]:
    """Notes which function a verb would call, instead of calling it."""
    told: list[tuple[Callable[..., Any], str | None]] = []
    call = program._call
    program._call = lambda verb, words, *, several=None: told.append((verb, several)) or 0
    try:
        yield told
    finally:
        program._call = call


def _function_of(start: Callable[[list[str]], int]) -> tuple[Callable[..., Any], str | None] | None:
    """Returns the function behind a verb and its argument of many words; None of those with a config."""
    if start in (program._fit, program._plan):
        return None
    with _listening() as told:
        start([])
    return told[0]


def _of_function(verb: str, function: Callable[..., Any], several: str | None) -> str:
    described = parse(function.__doc__ or "")
    meanings = {one.arg_name: one.description or "" for one in described.params}
    usage, rows = [f"flannel-pl {verb}"], []
    for name, one in inspect.signature(function, eval_str=True).parameters.items():
        is_required = one.default is one.empty
        shown = f"{name.upper()}" if is_required else f"--{name}"
        if name == several:
            shown = "PATH ..."
        usage.append(
            shown if is_required else f"[{shown} {'' if one.annotation is bool else '...'}".strip() + "]"
        )
        first = argument(shown, one.annotation, one.default, is_required=is_required)
        rows.append((first, cell(meanings.get(name, ""))))
    text = f"```\n{' '.join(usage)}\n```\n\n"
    if described.long_description:
        text += f"{described.long_description}\n\n"
    text += table(HEAD, rows) + "\n"
    if described.returns is not None and described.returns.description:
        text += f"Ends with: {cell(described.returns.description)}\n\n"
    return text


def _of_config(verb: str) -> str:
    usage = f"```\nflannel-pl {verb} --config FILE [--group.key value ...]\n```\n\n"
    if verb != "fit":
        return f"{usage}The arguments are those of [`fit`](#fit).\n\n"
    rows = [(f"`{name}`", cell(meaning)) for name, meaning in keys.options().items()]
    return (
        f"{usage}"
        "Every key of a [config](config.md) is an argument, before or after `--config`; what comes later "
        "wins.\n\n"
        f"{table(HEAD, rows)}\n"
    )


def _exit_codes() -> str:
    returns = parse(program.main.__doc__ or "").returns
    told = (returns.description if returns is not None else None) or ""
    rows = re.findall(r"(\d+(?: or \d+)?) ([^;.]+)", " ".join(told.split()))
    if len(rows) < 4:
        raise ValueError(f"the docstring of flannel_pl.__main__.main says no exit codes: {told!r}")
    text = table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in rows])
    return f"## Exit codes\n\n{text}\nWith `--debug` an error shows its traceback; its code is the same.\n"
