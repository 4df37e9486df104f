"""A resolved config as the code holds it; as plain keys and values it is only in YAML and JSON.

Every key that this package goes by has a type here. What other classes are given, Lightning's Trainer, the
recorder, the model, the data, a launcher, is handed to them as it is (`arguments`).
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from flannel_pl.dotted import set_value

Kind = TypeVar("Kind")


@dataclass
class ExperimentConfig:
    """Which runs there are, and where their files go."""

    name: str = "flannel"
    """Name of the experiment: its folder and its gathered file are called so."""

    seeds: int | list[int] | str = 42
    """One run per seed: 42..51 (both ends included), [42, 43] or 7."""

    sweep: dict[str, list[Any]] = field(default_factory=dict)
    """Values to try, per config key, e.g. {model.init_scale: [0.01, 0.02]}; every combination is run with
    every seed."""

    output_dir: Path = Path("runs")
    """Folder in which the experiment's own folder is made."""

    gather: Literal["single", "index", "none"] = "single"
    """What to make of the finished runs: one file, an index over the runs' files (nothing is copied), or
    nothing."""

    keep_shards: bool = True
    """Whether a run's own file stays once it is copied into the gathered one; false saves that much disk. An
    index and no gathering always keep them."""

    run: int | None = None
    """Train only the run of this number, and do not gather; null = every run."""


@dataclass
class LaunchConfig:
    """Which devices the runs use, and how they share them."""

    launcher: str = "local"
    """Where the runs are trained: on this host, or as jobs of a cluster. Each launcher that is installed has
    a name, and keys of its own below that."""

    devices: int | list[int] | Literal["auto"] = "auto"
    """Devices to use: auto = all there are, a number of them, or a list of their numbers as nvidia-smi shows
    them, among those that are visible. `trainer.devices` means the same. On the CPU a number is the number
    of runs trained side by side."""

    runs_per_device: int | Literal["auto"] = "auto"
    """Runs trained side by side on one device; auto = 1 on an accelerator, on the CPU one per core as far as
    the memory reaches."""

    threads_per_run: int | Literal["auto"] = "auto"
    """CPU threads of one run; auto = cores // runs trained side by side. Another number of threads adds up in
    another order, so it can change the last bit of a recording."""

    max_retries: int = 2
    """How often a run whose process was killed or raised an error is started again, from its last checkpoint,
    on another device if there is one."""

    checkpoint_every: int = 100
    """Steps between the checkpoints that an interrupted run goes on from; another is made when it is asked to
    stop."""

    mix_environments: bool = False
    """Whether a run that was begun goes on where something that can change bits differs from where it was
    begun: versions, the model of the processor or GPU, settings of torch. Its file then says which rows were
    made where."""

    detach: bool = False
    """Whether fit returns once jobs that outlive it are handed over, instead of showing their progress to the
    end."""


@dataclass(frozen=True)
class TrainerConfig:
    """What this package goes by among the arguments of Lightning's Trainer."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """All of them."""

    max_steps: int = -1
    min_steps: int | None = None
    max_epochs: int | None = None
    accelerator: str = "auto"
    devices: list[int] | str | int = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    log_every_n_steps: int | None = None
    fast_dev_run: int | bool = False
    callbacks: Any = None
    plugins: Any = None


@dataclass(frozen=True)
class RecordingConfig:
    """What this package goes by among the arguments of the recorder."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """All of them."""

    parameter: str | None = None
    tokens: str = "all"
    every_n_steps: int = 1
    live: Sequence[str] | None = None


@dataclass(frozen=True)
class ClassConfig:
    """A class, of the model or of the data, and what it is given."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    class_path: str | None = None
    """Its import path; None for the default one."""


@dataclass(frozen=True)
class Config:
    """A resolved config. One of an older version has the defaults where it lacks a key."""

    content: dict[str, Any]
    """All of it, by group, for YAML and JSON; nobody changes it."""

    experiment: ExperimentConfig
    launch: LaunchConfig
    launchers: Mapping[str, Mapping[str, Any]]
    """Name of a launcher -> its own keys."""

    trainer: TrainerConfig
    recorder: RecordingConfig
    model: ClassConfig
    data: ClassConfig

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Config":
        """Returns a config that was read, with its keys and values by group."""
        launch = content.get("launch", {})
        own = {one.name for one in dataclasses.fields(LaunchConfig)}
        others = {name: keys for name, keys in launch.items() if name not in own}
        return cls(
            dict(content),
            _typed(ExperimentConfig, content.get("experiment", {})),
            _typed(LaunchConfig, launch),
            others,
            _typed(TrainerConfig, content.get("trainer", {}), arguments=content.get("trainer", {})),
            _typed(RecordingConfig, content.get("recorder", {}), arguments=content.get("recorder", {})),
            *(_class_config(content.get(group, {})) for group in ("model", "data")),
        )

    @property
    def has_classes(self) -> bool:
        """Whether it names a class, of the model or of the data."""
        return self.model.class_path is not None or self.data.class_path is not None

    def but(self, values: Mapping[str, Any]) -> "Config":
        """Returns a config with other values.

        Args:
            values: Dotted key -> value.
        """
        content = copy.deepcopy(self.content)
        for key, value in values.items():
            set_value(content, key, value)
        return Config.of(content)


def _typed(kind: type[Kind], values: Mapping[str, Any], **more: Any) -> Kind:
    names = {one.name for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{**{key: value for key, value in values.items() if key in names}, **more})


def _class_config(group: Mapping[str, Any]) -> ClassConfig:
    arguments = {key: value for key, value in group.items() if key != "class_path"}
    return ClassConfig(arguments, group.get("class_path"))


def is_inline(said: str) -> bool:
    """Tells whether what is given for a config is its content, not the name of a file: it begins so."""
    return said.lstrip().startswith("{")
