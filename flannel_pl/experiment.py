"""Config -> runs: which there are, and with which values.

An experiment is one resolved config. It expands to numbered runs: the product of `experiment.sweep` (outer)
and `experiment.seeds` (inner). How its files are called is in `paths.py`.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flannel_pl.config import Config
from flannel_pl.dotted import flatten
from flannel_pl.errors import UserError
from flannel_pl.hints import meant
from flannel_pl.paths import ExperimentPaths as ExperimentPaths  # an experiment has them
from flannel_pl.paths import RunPaths as RunPaths
from flannel_pl.paths import is_plain_name as is_plain_name

MAX_RUNS = 100_000
"""More seeds than this are a slip of the finger."""

MAX_PATH_BYTES = 4000
"""Linux takes 4096, and the files of an experiment come behind its folder."""


@dataclass(frozen=True)
class Run:
    """One training from one seed on one device."""

    index: int
    """Number of the run in its experiment, from 0."""

    seed: int
    """Seed of the initial weights and of the batch order, unless the config fixes one of them."""

    swept: dict[str, Any]
    """Config key -> the value this run has of it, for every swept key."""


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time is trained."""

    accelerator: str
    """cpu, cuda or mps."""

    device: int | None
    """Number of the device; None on the CPU."""

    threads: int
    """CPU threads of a run here."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables with which a run's process sees this device only; none if it sees all."""

    @property
    def number(self) -> int | None:
        """Number of the device as a run's process counts."""
        return 0 if self.environment else self.device

    @property
    def name(self) -> str:
        """The device as torch writes it, e.g. cuda:1."""
        return self.accelerator if self.device is None else f"{self.accelerator}:{self.device}"


@dataclass(frozen=True)
class RunMemory:
    """What was measured of a run whose model the config says nothing of."""

    row_bytes: int
    """Of its recording."""

    parameter_bytes: int
    """Of all parameters of its model."""


@dataclass(frozen=True)
class ResolvedExperiment:
    """One resolved config and the runs it expands to."""

    config: Config
    runs: tuple[Run, ...]
    paths: ExperimentPaths
    memory_of: Mapping[int, RunMemory] = field(default_factory=dict)
    """Number of a run -> what was measured of it; of others the config tells."""

    @classmethod
    def from_config(cls, content: dict[str, Any]) -> "ResolvedExperiment":
        """Expands a config into its runs.

        Args:
            content: The complete config as plain nested dicts, the way LightningCLI groups it.

        Raises:
            UserError: If seeds, sweep, name or run number are malformed.
        """
        config = Config.of(content)
        settings = config.experiment
        name = settings.name
        if not is_plain_name(name):
            raise UserError(f"experiment.name is {name!r}, expected a plain folder name, e.g. flannel3")
        if name.startswith("."):
            raise UserError(f"experiment.name is {name!r}, whose files would be hidden; begin it otherwise")
        seeds = parse_seeds(settings.seeds)
        combinations = list(_combinations(content, settings.sweep))
        runs = tuple(
            Run(index, seed, swept)
            for index, (swept, seed) in enumerate(itertools.product(combinations, seeds))
        )
        only = settings.run
        if only is not None and not 0 <= only < len(runs):
            raise UserError(f"experiment.run is {only}, but the experiment has runs 0 to {len(runs) - 1}")
        folder = local_path(settings.output_dir, key="experiment.output_dir").absolute() / name
        if "::" in str(folder):
            raise UserError(
                f"{folder} has '::' in it, which Lightning takes for a chain of addresses, and would write "
                "elsewhere; choose another experiment.name or experiment.output_dir"
            )
        return cls(config, runs, ExperimentPaths(folder, name))

    @property
    def selected(self) -> tuple[Run, ...]:
        """The runs to train: all, or only `experiment.run`."""
        only = self.config.experiment.run
        return self.runs if only is None else (self.runs[only],)

    def run_config(self, run: Run) -> Config:
        """Returns the complete config of one run: swept values in place, and only this run selected."""
        place = {"experiment.run": run.index, "experiment.output_dir": str(self.paths.folder.parent)}
        return self.config.but({**run.swept, **place})

    def record(self, provenance: dict[str, Any], *, settled: dict[str, Any]) -> dict[str, Any]:
        """Returns what `experiment.json` holds.

        Args:
            provenance: Where it comes from, with the digests of its data under `data`.
            settled: What `auto` came to where bits may depend on it: `accelerator` and `threads_per_run`.
        """
        runs = [{"index": run.index, "seed": run.seed, "swept": run.swept} for run in self.runs]
        return {
            "schema": 1,
            "name": self.paths.name,
            "config": self.config.content,
            "runs": runs,
            "provenance": provenance,
            "settled": settled,
        }


def local_path(path: object, *, key: str) -> Path:
    """Returns a path with `~` resolved.

    Args:
        path: What a config has.
        key: Under which key.

    Raises:
        UserError: If it is an address such as s3://bucket/folder, also with one of its slashes gone, or
            nothing can be called so.
    """
    text = str(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(
            f"{key} is {text!r}, but files are read and written where they are local or mounted; give a path "
            "there"
        )
    shown = repr(text) if len(text) < 80 else f"{text[:80]!r}..."
    try:
        names = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:  # half of a character
        names = [b"\0"]
    if b"\0" in b"".join(names) or max(map(len, names)) > 255 or len(b"/".join(names)) > MAX_PATH_BYTES:
        raise UserError(f"{key} is {shown}, which no file or folder can be called; give another path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{key} is {shown}, but there is no such home folder; give another path") from None


def parse_seeds(seeds: int | list[int] | str) -> list[int]:
    """Reads `42..51` (both ends included), `[42, 43]` or `7`.

    Raises:
        UserError: If there is none, one is repeated or out of range, or the text has another form.
    """
    if isinstance(seeds, str):
        match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", seeds)
        if not match:
            raise UserError(f"experiment.seeds is {seeds!r}, expected 42..51, [42, 43] or 7")
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise UserError(f"experiment.seeds is {seeds!r}, which counts down; write {last}..{first}")
        numbers: Sequence[int] = range(first, last + 1)
        outside = [number for number in (first, last) if number >= 2**32]
    else:
        numbers = [seeds] if isinstance(seeds, int) else list(seeds)
        outside = [number for number in numbers if not 0 <= number < 2**32]
    if not numbers:
        raise UserError("experiment.seeds is empty; give at least one seed, e.g. 42..51, [42, 43] or 7")
    if outside:
        raise UserError(f"experiment.seeds has {outside}, expected numbers from 0 to 2**32 - 1")
    if len(numbers) > MAX_RUNS:
        raise UserError(f"experiment.seeds are {len(numbers)} seeds, expected at most {MAX_RUNS}")
    repeated = sorted(number for number, count in Counter(numbers).items() if count > 1)
    if repeated:
        raise UserError(f"experiment.seeds repeats {repeated}; each seed is one run, so name it once")
    return list(numbers)


def _combinations(config: dict[str, Any], sweep: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yields every combination of swept values, the last key varying fastest."""
    known = dict(flatten({group: config[group] for group in ("model", "data", "trainer")}))
    for key, values in sweep.items():
        if key not in known:
            hint = meant(key, list(known))
            if key.split(".")[0] in ("recorder", "experiment", "launch"):
                hint = "; only keys of model, data and trainer can be swept"
            raise UserError(f"experiment.sweep has {key}, which cannot be swept{hint}")
        if not isinstance(values, list) or not values:
            raise UserError(f"experiment.sweep gives {key} {values!r}, expected a list of values")
        for value in values if key.endswith("_path") else []:
            local_path(value, key=f"experiment.sweep has {key}, of which one value")
    for combination in itertools.product(*sweep.values()):
        yield dict(zip(sweep, combination, strict=True))
