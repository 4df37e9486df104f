"""The quick answer to a command that was answered before: everything that it asks for is finished.

The parser takes seconds to import. What it makes of a command depends on nothing but the command and the
files that it names; so once a command's experiment has been found finished, that is noted in the cache, and
while the files are the same it is enough to see whether the experiment is still there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flannel_pl import __version__
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.paths import ExperimentPaths, cache_home
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.gathering.gathered import Mode, is_gathered
from flannel_pl.recording.writing.leftovers import has_leftovers
from flannel_pl.small_files import read_small

State = list[int]
"""What differs once a file has changed."""

MAX_CONFIG_BYTES = 2**20

MAX_NOTES = 256
"""The oldest notes are removed beyond that."""


@dataclass(frozen=True)
class Finished:
    """A finished experiment."""

    paths: ExperimentPaths
    mode: Mode | str
    """How it is gathered."""

    def __str__(self) -> str:
        if self.mode == "none":
            return "\n".join(f"finished: {self.paths.run(index).recording}" for index in self.indices)
        return f"finished already: {self.paths.gathered if self.mode == 'single' else self.paths.index}"

    @property
    def indices(self) -> list[int]:
        """The numbers of its runs."""
        return read_record(self.paths).indices

    def is_there(self) -> bool:
        """Tells whether nothing is left to do, as `fit` itself does."""
        if self.mode != "single" and not all(is_there(self.paths.run(one).recording) for one in self.indices):
            return False
        if self.mode == "none":
            return True
        mode: Mode = "single" if self.mode == "single" else "index"
        return is_gathered(self.paths, mode=mode) and not has_leftovers(self.paths, self.indices)


def finished_already(words: Sequence[str]) -> Finished | None:
    """Returns the experiment that a command asks for if it is known to be finished.

    Args:
        words: The command line behind the verb.
    """
    try:
        note = json.loads(read_small(_note_of(words)))
        finished = Finished(ExperimentPaths(Path(note["folder"]), note["name"]), note["mode"])
        is_same = all(state and _state(Path(path)) == state for path, state in note["files"].items())
        return finished if is_same and finished.is_there() else None
    except Exception:  # whatever is wrong with a note or the folder, the long way tells
        return None


def named_files(words: Sequence[str], content: Mapping[str, Any] | None = None) -> dict[str, State]:
    """Returns the files that a command names, and those that its configs do, as they are now.

    Args:
        words: The command line behind the verb.
        content: What was made of it, if that is known.
    """
    seen = set[Path]()
    _add_files((part for word in words for part in (word, word.partition("=")[2])), seen)
    _add_files(_texts_in(content), seen)
    return {str(path): _state(path) for path in seen}


def note_finished(words: Sequence[str], named: Mapping[str, State], experiment: ResolvedExperiment) -> None:
    """Notes what a command has come to, if all of its experiment is finished.

    Not where a class is named: its code is not among the files, and may say something else tomorrow.

    Args:
        words: The command line behind the verb.
        named: Its files, as they were when it was read; what is in them may have changed since.
        experiment: What was made of it.
    """
    settings, content = experiment.config.experiment, experiment.config.content
    finished = Finished(experiment.paths, settings.gather)
    if settings.run is not None or "class_path" in json.dumps(content, default=str):
        return
    with suppress(Exception):  # it is only slower without
        if not finished.is_there():
            return
        record = experiment.paths.record
        note = {
            "folder": str(experiment.paths.folder),
            "name": experiment.paths.name,
            "mode": settings.gather,
            "files": {**named, str(record): _state(record)},
        }
        path = _note_of(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(note), encoding="utf-8")
        partial.replace(path)
        newest = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in newest[MAX_NOTES:]:
            old.unlink()


def _note_of(words: Sequence[str]) -> Path:
    command = json.dumps([__version__, str(Path.cwd()), str(Path.home()), list(words)])
    return cache_home() / "finished" / f"{hashlib.sha256(command.encode()).hexdigest()}.json"


def _state(path: Path) -> State:
    """Returns what differs once a file has changed, or is another; nothing of one that is gone."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _add_files(texts: Iterable[str], seen: set[Path], *, beside: Path | None = None) -> None:
    """Adds the files among some texts, and those that they name in turn.

    Args:
        texts: What may be the name of a file, or the content of a config.
        seen: To what they are added.
        beside: Where to look first.
    """
    for text in texts:
        with suppress(OSError, ValueError, yaml.YAMLError):  # no path can be as long as some texts are
            if text.startswith(("{", "[")):
                _add_files(_texts_in(yaml.safe_load(text)), seen, beside=beside)
                continue
            for folder in (beside, Path()) if beside else (Path(),):
                path = (folder / Path(text).expanduser()).absolute()
                if not text or path in seen or not path.is_file():
                    continue
                seen.add(path)
                if path.suffix in (".yaml", ".yml", ".json"):
                    content = yaml.safe_load(read_small(path, max_bytes=MAX_CONFIG_BYTES))
                    _add_files(_texts_in(content), seen, beside=path.parent)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts_in(one)
    elif isinstance(value, str):
        yield value
