"""What an experiment says of itself, in `experiment.json`: read, checked once, and typed.

Whatever else uses a record may rely on the types below. No numpy here, so that `status` starts at once.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flannel_pl.config import Config
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import Run, parse_seeds
from flannel_pl.paths import ExperimentPaths, is_plain_name
from flannel_pl.recording.formats.metadata import num_marks, parse_json, short
from flannel_pl.recording.formats.opening import unreachable
from flannel_pl.recording.formats.tokens import has_tokens
from flannel_pl.small_files import read_small
from flannel_pl.texts import from_file

GatherMode = Literal["single", "index", "none"]

MAX_RECORD_BYTES = 32 * 2**20
MAX_RECORD_MARKS = 1_500_000
"""Braces, brackets and commas. An experiment of 100,000 runs with four swept keys has a million, in 20 MB."""

_MAX_NUMBER = 3e38  # of float32, which a gathered recording keeps these numbers in

_SCHEMA = 1


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment as its folder describes it; see `read_record`."""

    name: str
    """Its files are called so."""

    config: Mapping[str, Any]
    """The resolved config, by group. Each group is an object; what a config of an older version lacks is
    missing here too."""

    runs: tuple[Run, ...]
    """At least one, numbered from 0."""

    provenance: Mapping[str, Any]
    """Versions, commit, command, device, ... of the launch that began it."""

    settled: Mapping[str, Any]
    """What `auto` came to where bits may depend on it: `accelerator` and `threads_per_run`, if it says so."""

    content: Mapping[str, Any]
    """All of the file, as it is there."""

    @classmethod
    def parse(cls, text: bytes) -> "ExperimentRecord":
        """Checks the text of an `experiment.json`.

        Raises:
            ValueError: Names what is not as expected, and where.
        """
        if len(text) > MAX_RECORD_BYTES or num_marks(text) > MAX_RECORD_MARKS:
            raise ValueError("it lists more than any experiment has")
        content = parse_json(text.decode("utf-8"))
        if content.get("schema", _SCHEMA) != _SCHEMA:
            raise ValueError(f"schema is {short(content['schema'])}, expected {_SCHEMA}")
        name = from_file(content.get("name"))
        if not is_plain_name(name):
            raise ValueError(f"name is {short(name)}, expected a plain folder name")
        config = _object(content.get("config"), "config")
        for group in config:
            if group in _GROUPS:
                _object(config[group], f"config.{group}")
        groups = {group: config.get(group, {}) for group in _GROUPS}
        runs = tuple(_runs(content.get("runs")))
        _check_config(groups, runs)
        return cls(
            name=str(name),
            config={**config, **groups},
            runs=runs,
            provenance=_provenance(content.get("provenance", {})),
            settled=_settled(content.get("settled", {})),
            content=content,
        )

    @functools.cached_property
    def settings(self) -> Config:
        """The config with types, and defaults for what it lacks."""
        return Config.of(self.config)

    @property
    def gather(self) -> GatherMode:
        """What is to be made of the finished runs."""
        return self.settings.experiment.gather

    @property
    def keeps_shards(self) -> bool:
        """Whether runs keep their own recordings once they are gathered."""
        return self.settings.experiment.keep_shards

    @property
    def swept_keys(self) -> frozenset[str]:
        """Config keys that differ from run to run, besides the seed."""
        return frozenset(key for run in self.runs for key in run.swept)

    def num_rows(self, run: Run) -> int:
        """Returns how many rows a run has if it does not end early."""
        max_steps = run.swept.get("trainer.max_steps", self.settings.trainer.max_steps)
        return int(1 + max_steps // self.settings.recorder.every_n_steps)

    @property
    def has_tokens(self) -> bool:
        """Whether there is a file of live and dead tokens."""
        return has_tokens(self.config, self.data_digests)

    @property
    def data_digests(self) -> Mapping[str, str]:
        """Name of each data file -> the hash of its content."""
        digests: Mapping[str, str] = self.provenance.get("data", {})
        return digests

    @property
    def threads_per_run(self) -> int | None:
        """CPU threads that the runs were begun with; None if it does not say."""
        return self.settled.get("threads_per_run")

    @property
    def indices(self) -> list[int]:
        """Numbers of the runs, ascending."""
        return [run.index for run in self.runs]

    @functools.cached_property
    def run_entries(self) -> list[dict[str, Any]]:
        """Of each run its number, seed and swept values, as files write them."""
        return [{"index": run.index, "seed": run.seed, "swept": run.swept} for run in self.runs]

    def common(self, key: str) -> Any:
        """Returns the value of a config key that all runs share; None if they do not, or it is not there."""
        group, name = key.split(".", 1)
        configured = self.config[group].get(name)
        values = [run.swept.get(key, configured) for run in self.runs]
        return values[0] if all(value == values[0] for value in values) else None


def read_record(paths: ExperimentPaths) -> ExperimentRecord:
    """Returns what `experiment.json` says.

    Raises:
        UserError: If there is none: not an experiment's folder.
        RunError: If it cannot be read, or anything in it is not as `flannel-pl fit` writes it.
    """
    try:
        return ExperimentRecord.parse(read_small(paths.record, max_bytes=MAX_RECORD_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{paths.folder} is no experiment's folder: it has no {paths.record.name}. "
            "Give the folder that holds run_0, run_1, ..."
        ) from None
    except OSError as error:
        raise unreachable(paths.record, error) from error
    except ValueError as error:
        raise RunError(
            f"Cannot read {paths.record}: {error}. Bring back the file as flannel-pl fit wrote it."
        ) from error


_GROUPS = ("experiment", "launch", "trainer", "model", "data", "recorder")

_NUMBERS = (
    *("model.init_scale", "model.learning_rate", "model.weight_decay"),
    *("model.adam_beta1", "model.adam_beta2"),
)
"""Keys whose values a gathered recording has as numbers, if they are there."""


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {short(value)}, expected an object")
    return value


def _count(value: Any, where: str) -> None:
    """Refuses what is not a number of steps, threads or the like; True and 3.0 are none."""
    if type(value) is not int or not 1 <= value < 2**63:
        raise ValueError(f"{where} is {short(value)}, expected a whole number, at least 1")


def _runs(runs: Any) -> list[Run]:
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"runs is {short(runs)}, expected a list of at least one run")
    found = []
    for index, run in enumerate(runs):
        where = f"runs[{index}]"
        run = _object(run, where)
        if type(run.get("index")) is not int or run["index"] != index:
            raise ValueError(f"{where} has the index {short(run.get('index'))}, expected {index}")
        seed = run.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"{where} has the seed {short(seed)}, expected a number from 0 to 2**32 - 1")
        found.append(Run(index, seed, _object(run.get("swept"), f"{where}.swept")))
    return found


def _check_config(groups: Mapping[str, Any], runs: tuple[Run, ...]) -> None:
    experiment = groups["experiment"]
    if experiment.get("gather") not in ("single", "index", "none"):
        raise ValueError(
            f"experiment.gather is {short(experiment.get('gather'))}, expected single, index or none"
        )
    # Shards are deleted by it, so it is never guessed.
    if type(experiment.get("keep_shards", True)) is not bool:
        raise ValueError(
            f"experiment.keep_shards is {short(experiment['keep_shards'])}, expected true or false"
        )
    _object(experiment.get("sweep", {}), "experiment.sweep")
    _check_seeds(experiment.get("seeds", 42))
    _count(groups["recorder"].get("every_n_steps"), "recorder.every_n_steps")
    values = {"trainer.max_steps": groups["trainer"].get("max_steps")}
    # Of another class nobody knows what its arguments are.
    numbers = () if "class_path" in groups["model"] else _NUMBERS
    values |= {key: groups["model"][name] for key in numbers if (name := key[6:]) in groups["model"]}
    for where, named in [("", values), *((f"runs[{run.index}].swept: ", run.swept) for run in runs)]:
        for key, value in named.items():
            if key == "trainer.max_steps":
                _count(value, f"{where}{key}")
            elif key not in numbers or value is None:  # null: an optimizer of another class has its own
                continue
            elif not (type(value) in (int, float) and abs(value) < _MAX_NUMBER):
                raise ValueError(f"{where}{key} is {short(value)}, expected a number")


def _check_seeds(seeds: Any) -> None:
    numbers = seeds if isinstance(seeds, list) else [seeds]
    if not isinstance(seeds, str) and not all(type(number) is int for number in numbers):
        raise ValueError(f"experiment.seeds is {short(seeds)}, expected 42..51, [42, 43] or 7")
    parse_seeds(seeds)


def _provenance(provenance: Any) -> dict[str, Any]:
    digests = _object(_object(provenance, "provenance").get("data", {}), "provenance.data")
    for name, digest in digests.items():
        if not isinstance(digest, str):
            raise ValueError(f"provenance.data.{name} is {short(digest)}, expected the hash of its content")
    return dict(provenance)


def _settled(settled: Any) -> dict[str, Any]:
    settled = _object(settled, "settled")
    if "threads_per_run" in settled:
        _count(settled["threads_per_run"], "settled.threads_per_run")
    if not isinstance(settled.get("accelerator", ""), str):
        raise ValueError(f"settled.accelerator is {short(settled['accelerator'])}, expected e.g. cpu")
    return dict(settled)
