"""What jsonargparse says of a value that it does not take, in one line: key, what it is, what it may be."""

import collections.abc
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    datetime.timedelta: "a duration",
    type(None): "null",
}
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable)
_DICTS = (dict, collections.abc.Mapping)

_SAYS_NOTHING = re.compile(
    r"(Expected an? (<class|typing|list|dict|path but)|Does not validate|Subtypes:|Subclass types|Given value"
    r"|Not a valid subclass|Import path .* does not correspond|Errors:|an? (class path|dict) |Parser key"
    r"|Unable to load|Problem with given class_path|$)"
)
"""How a line begins that tells nothing of the value, or only what the next one goes on with."""

_OF_CLASS = re.compile(
    r'Parser key "(\w+)":\s+Expected an? (?:<class \'(\w+)\'>|typing\.(\S.*))\. Got value: (.*)'
)
"""What is said of an argument of a class."""


def refusal(message: str, types: Mapping[str, Any]) -> str:
    """Returns what is to be said instead of a message of jsonargparse.

    Args:
        message: Its message, of several lines.
        types: Every key of the config -> its type.
    """
    message = re.sub(r'^Parser key "config":\s+(?=Parser key|Group|Option)', "", message)
    if message.startswith("Unexpected config"):
        return "the config has no keys, expected e.g. model: {n_layer: 2}"
    message = re.sub(r"(--recorder\.\w+)/--recorder\.\w+\+", r"\1", message)  # two ways to write one
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key in types]
    if not keys:
        return _of_no_key(" ".join(message.split()))
    key, kind = keys[-1], types[keys[-1]]
    got = re.findall(r"(?:Got value|Given value): ?(.*)", message)
    plain = {*_WORDS, *_LISTS, *_DICTS, Literal, Any}
    if got and Literal in _kinds(kind) and "." not in got[-1]:  # a misspelt word rather than a class's path
        plain.add(Callable)
    if got and _kinds(kind) <= plain:
        is_or_has = "has" if _kinds(kind) & {*_LISTS, *_DICTS} else "is"
        quotes = "; write it in quotes" if _kinds(kind) <= {str, type(None)} else ""
        return f"{key} {is_or_has} {got[-1].strip() or repr('')}, expected {_expected(kind)}{quotes}"
    if found := _OF_CLASS.search(message):
        argument, name, literal, value = found.groups()
        words = {known.__name__: word for known, word in _WORDS.items()}
        return f"{key} has {argument} {value}, expected {words.get(name, name) if name else literal}"
    reasons = list(dict.fromkeys(_reasons(message)))
    reasons = [reason for reason in reasons if "' is not accepted" not in reason] or reasons
    return f"{key}: {'; '.join(reasons) or 'expected ' + _expected(kind)}"


def _of_no_key(message: str) -> str:
    """Returns what is said of a group of keys, of a file, or of an argument that nobody knows."""
    if found := re.match(r"Parser key \"([\w.]+)\": Unable to load config ('.*?')", message):
        return f"{found[1]} is {found[2]}, expected its keys with their values, or a config that has them"
    if found := re.match(r"Parser key \"config\": File does not exist: (.*)", message):
        return f"there is no config {found[1]}"
    return message


def _reasons(message: str) -> Iterator[str]:
    """Yields the lines that say why a class is not taken."""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if found := re.fullmatch(r"Expected a dot import path string: (.*)", text):
            yield f"there is no {found[1]!r}; give a class of Lightning's, or the path to import one from"
        elif found := re.fullmatch(r"Type typing\.Callable.* a callable class: (.*)", text):
            yield f"{found[1]}; give the path to import a class from"
        elif not _SAYS_NOTHING.match(text):
            yield text


def _kinds(kind: Any) -> set[Any]:
    """Returns the types, without arguments, that a type consists of."""
    origin = get_origin(kind)
    if origin is Literal:
        return {Literal}
    if origin is None:
        return {kind}
    if origin is Callable:  # what it takes and returns is no type of a value
        return {origin}
    inner = set[Any]().union(*(_kinds(one) for one in get_args(kind)))
    return inner if origin in (Union, UnionType) else {origin} | inner


def _expected(kind: Any) -> str:
    """Returns a type in words."""
    words = list(dict.fromkeys(_words(kind)))
    words.sort(key=lambda word: word == "null")
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _words(kind: Any) -> Iterator[str]:
    """Yields each of the types that a type consists of in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from map(str, arguments)
    elif origin in (Union, UnionType):
        for one in arguments:
            yield from _words(one)
    elif origin in _LISTS:
        yield "a list" + {int: " of whole numbers", str: " of texts, e.g. [a, b]"}.get(arguments[0], "")
    elif origin in _DICTS:
        yield "keys with a list of values each" if get_origin(arguments[1]) in _LISTS else "keys with values"
    else:
        yield _WORDS.get(kind, "a class, as class_path and init_args")
