"""How arguments and configs are read and written: as YAML in which a text stays the text that it is.

jsonargparse takes every text for YAML that is still to be read, also one from a file in which it stands in
quotes: a path called `null` would be no path, and one called `a: b` a list of keys. So the texts within what
was read are marked as read.
"""

import re
from typing import Any, cast

import yaml
from jsonargparse import Namespace, get_loader, set_dumper, set_loader
from jsonargparse import _loaders_dumpers as loading
from jsonargparse.typing import register_type
from typing_extensions import override

from flannel_pl.texts import for_file, from_file

_PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}
_NULLS = {"null", "Null", "NULL", "~"}
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")

_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$",
    "tag:yaml.org,2002:float": r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}
"""Numbers as of YAML 1.2, and 1e-3: 1:30 is not 90, and 010 is not 8."""


class Text(str):
    """A text from within YAML that was read, which jsonargparse does not read once more."""

    __slots__ = ()


def typed(value: Any) -> Any:
    """Returns a config of plain values with every text in it marked as read."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return Text(value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Returns what was parsed with plain texts again, as checkpoints may hold them."""
    if isinstance(value, Namespace):
        return type(value)({name: plain(item) for name, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Text) else value


def loads(text: str) -> Any:
    """Returns what `dumps` has made a text of."""
    return plain(_load(text))


def dumps(data: Any) -> str:
    """Returns plain values as YAML in ASCII, which every reader of YAML takes for the same values."""
    return str(yaml.dump(data, Dumper=_ExactDumper, sort_keys=False))


class _Loader(cast(Any, loading.get_yaml_default_loader)()):  # type: ignore[misc]
    """Reads YAML with our numbers."""

    def __init__(self, stream: str) -> None:
        super().__init__(str(stream))  # libyaml takes no Text


class _PatientLoader(yaml.SafeLoader):
    """A slower reader, of what the quick one refuses: half of a character, i.e. a byte that is no text."""


for _loader in (_Loader, _PatientLoader):
    _loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag not in _NUMBERS]
        for first, found in _Loader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in _NUMBERS.items():
        _loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))

_read_yaml = get_loader("yaml")


def read_exactly() -> None:
    """Makes this how jsonargparse reads and writes, in this process."""
    loading.yaml_default_loader = cast(Any, _Loader)
    register_type(Text, serializer=Text)
    # A path may be no text in this locale, and is none of YAML's business.
    set_loader("yaml", _load, exceptions=(yaml.YAMLError, UnicodeEncodeError))
    set_dumper("yaml", dumps)


def _load(text: str) -> Any:
    if isinstance(text, Text):
        return text
    unicode = for_file(text)
    try:
        value = _read_yaml(unicode)
    except yaml.YAMLError:
        if not _HALF_CHARACTER.search(unicode):
            raise
        value = yaml.load(unicode, Loader=_PatientLoader)
    if value is None and text.strip() not in _NULLS:
        return text  # e.g. #1, which YAML takes for a comment on nothing
    return typed(from_file(value))


class _ExactDumper(yaml.SafeDumper):
    """Quotes every text that some reader of YAML could take for something else, e.g. 3e-4 for a number."""

    @override
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Returns how to write a text; of an enumeration's, its value."""
        text = for_file(str.__str__(text))
        is_plain = _PLAIN_TEXT.fullmatch(text) and text.lower() not in _NOT_TEXT
        return self.represent_scalar("tag:yaml.org,2002:str", text, None if is_plain else '"')


_ExactDumper.add_representer(str, _ExactDumper.represent_text)
_ExactDumper.add_multi_representer(str, _ExactDumper.represent_text)
