"""The command line of `fit` and `plan`: LightningCLI with the config groups of an experiment.

`resolve` turns arguments into one complete config of plain values. `FlannelCLI` is also what builds the
Trainer, module and data of one run from such a config (see `training/fit.py`).
"""

import copy
import functools
import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.arguments import Text, loads, plain, read_exactly, typed
from flannel_pl.config import ExperimentConfig, LaunchConfig
from flannel_pl.dotted import flatten, set_value
from flannel_pl.errors import UserError
from flannel_pl.experiment import local_path
from flannel_pl.plugins import launcher_settings, launchers
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.recording.formats.schema import RECORDABLE
from flannel_pl.training.classes import (
    DEFAULTS,
    class_paths,
    find_class,
    normal_form,
    note_source_of,
    without_classes,
)
from flannel_pl.training.parser import FlannelParser
from flannel_pl.training.words import Words, check_config_file, config_first, with_lists, with_logger_folders

# Makes the docstring below each field of a config dataclass its --help text.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

read_exactly()


class FlannelCLI(LightningCLI):
    """LightningCLI with the groups trainer, model, data, recorder, experiment and launch.

    Args:
        config: A complete config as nested dicts, of which to make Trainer, module and data; None = only the
            parser is wanted.
        classes: Group -> the class of model and of data, where that is not the default one.

    Raises:
        UserError: If the config cannot be read; with the nearest key there is.
    """

    def __init__(self, config: dict[str, Any] | None, *, classes: Mapping[str, str] | None = None) -> None:
        self._build = config is not None
        self._classes = dict(classes or {})
        self._kinds = {
            group: (self._classes.get(group) and find_class(self._classes[group], group)) or default
            for group, default in DEFAULTS.items()
        }
        super().__init__(
            cast("Any", self._kinds["model"]),
            cast("Any", self._kinds["data"]),
            run=False,
            args=cast("Any", config),
            auto_configure_optimizers=False,
            seed_everything_default=False,
            save_config_callback=None,
            load_from_checkpoint_support=False,
            parser_class=FlannelParser,
            parser_kwargs={
                "prog": "flannel-pl fit",
                "description": "Trains every run of an experiment and gathers the recordings into one file. "
                "Another model, or other data: --model my_lab.MyModule --data my_lab.MyData, and with --help "
                "their arguments.",
                "allow_abbrev": False,  # the beginning of a key may be a misspelt one
            },
        )

    @override
    def setup_parser(self, *arguments: Any) -> None:
        if self._build:
            self.parser = parser_of(*(self._classes.get(group) for group in DEFAULTS))
        else:
            super().setup_parser(*arguments)
            cast("FlannelParser", self.parser).classes = self._classes

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=False,
            help="The same as experiment.seeds of that one seed.",
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        ours = {"folder", "label", "checkpoint_every", "note", "in_experiment", "overwrite"}
        parser.add_class_arguments(StepRecorder, "recorder", skip=ours, instantiate=False)
        parser.add_class_arguments(ExperimentConfig, "experiment")
        parser.add_class_arguments(LaunchConfig, "launch", instantiate=False)
        for name, settings in launcher_settings().items():
            parser.add_class_arguments(settings, f"launch.{name}", instantiate=False)
        model, data = self._kinds.values()
        if (embedding := getattr(model, "EMBEDDING", None)) is not None:
            parser.set_defaults({"recorder.parameter": embedding, "recorder.tensors": [*RECORDABLE]})
        for name in getattr(data, "AS_THE_MODELS", ()):
            if name in inspect.signature(model).parameters:
                parser.link_arguments(f"model.{name}", f"data.{name}")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Not LightningCLI's own: it warns whenever arguments are passed in while sys.argv has some too.
        self.config = {} if args is None else parse_config(args)

    @override
    def instantiate_classes(self) -> None:
        if self._build:
            super().instantiate_classes()

    @override
    def _set_seed(self) -> None:
        """Does nothing: a run is seeded with its own seed, see `training/fit.py`."""


@functools.cache
def parser_of(model: str | None = None, data: str | None = None) -> FlannelParser:
    """Returns the parser of every config of some classes; making one takes longer than the first small steps.

    Args:
        model: Import path of the model's class; None for the default one.
        data: Likewise of the data's.
    """
    named = {group: path for group, path in zip(DEFAULTS, (model, data), strict=True) if path is not None}
    parser = cast("FlannelParser", FlannelCLI(None, classes=named).parser)
    for action in parser._actions:
        if hasattr(action, "_typehint"):
            is_launcher = action.dest == "launch.launcher"
            kind = Literal[tuple(launchers())] if is_launcher else action._typehint
            action._typehint = _whole_numbers_first(kind)
        if hasattr(action, "_load_config"):
            action._load_config = functools.partial(_load_group, action._load_config)
    return parser


def _load_group(load: Callable[[Any, Any], Any], value: Any, parser: Any) -> Any:
    """Returns a group's keys; a text in its place, as in `model: small.yaml`, is the name of a file."""
    return load(str(value) if isinstance(value, Text) else value, parser)


def _whole_numbers_first(kind: Any) -> Any:
    """Returns a type in which 1 stays a whole number wherever that is allowed.

    Of Lightning's `int | float` the order depends on what was imported before: `typing` takes both orders for
    equal and keeps the first. With float first, one batch (1) would become all batches (1.0).
    """
    if get_origin(kind) not in (Union, UnionType) or not {int, float} <= set(get_args(kind)):
        return kind
    return Union[tuple(sorted(get_args(kind), key=lambda member: member is float))]  # noqa: UP007


def parse_config(config: dict[str, Any]) -> Namespace:
    """Checks a complete config of plain nested dicts and returns it with typed values and linked keys.

    Raises:
        UserError: If a key or the type of a value is not accepted.
    """
    parser = parser_of(*class_paths(config))
    return cast("Namespace", plain(parser.parse_object(typed(without_classes(config)))))


def built(config: dict[str, Any]) -> FlannelCLI:
    """Returns Trainer, module and data of a run's complete config."""
    named = dict(zip(DEFAULTS, class_paths(config), strict=True))
    return FlannelCLI(config, classes={group: path for group, path in named.items() if path is not None})


def recorder_arguments(recorder: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `StepRecorder` that a config says, with quantities in place of paths."""
    if recorder.get("quantities") is None:
        return dict(recorder)
    parser = ArgumentParser(exit_on_error=False)
    # Not `| None`, which would tell of types in place of what a class says when it is made.
    parser.add_argument("--quantities", type=list[Quantity])
    parsed = parser.parse_object({"quantities": typed(recorder["quantities"])})
    try:
        quantities = parser.instantiate_classes(parsed).quantities
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"recorder.quantities: one of them cannot be made: {what}") from error
    for quantity in quantities:
        note_source_of(type(quantity))
    return {**recorder, "quantities": quantities}


def to_yaml(config: dict[str, Any]) -> str:
    """Returns a complete config as YAML that `fit --config` reads back as the same values.

    Without the keys of launchers that it does not ask for: where it is read they may not be installed.
    """
    parser = parser_of(*class_paths(config))
    parsed = parser.parse_object(typed(without_classes(config)))
    for name in launcher_settings().keys() - {config["launch"]["launcher"]}:
        del parsed[f"launch.{name}"]
    return parser.dump(parsed, skip_unset=False)


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """Reads the arguments of `fit` or `plan` into one complete config.

    `--config` may stand anywhere: the other arguments override it. `--help` and `--print_config` print and
    end the process, as in every LightningCLI.

    Raises:
        UserError: If an argument, a key or a value is not accepted.
    """
    in_order = config_first(arguments)
    words = Words(in_order)
    parser = parser_of(*words.classes.values())
    for word, following in itertools.pairwise([*in_order, ""]):
        if word.startswith(("--config", "-c")):
            check_config_file(word.partition("=")[2] or following)
    parsed = parser.parse_args(with_lists(with_logger_folders(words.rest), parser.lists))
    with warnings.catch_warnings():
        # The default of an argument that is no plain value: left out below, so that it stays the default.
        warnings.filterwarnings("ignore", message=r"[\s\S]*Unable to serialize instance")
        try:
            text = parser.dump(parsed, skip_unset=False)
        except ValueError as error:  # e.g. an enumeration that is the default of a callback's argument
            lines = str(error).splitlines()
            reason = "; ".join(line.strip(" -") for line in lines if "represent" in line) or lines[-1]
            raise UserError(
                f"a value of trainer cannot be written down ({reason.strip()}); give that argument as a "
                "plain value, e.g. --trainer.callbacks.interval step"
            ) from error
    config: dict[str, Any] = normal_form(_serializable(loads(text)))
    infinite = [
        key for key, value in flatten(config) if isinstance(value, float) and not math.isfinite(value)
    ]
    if infinite:
        raise UserError(f"{', '.join(infinite)}: expected a finite number")
    _make_absolute(config)
    _make_room_for_optimizer(config)
    config["experiment"]["sweep"] = sweep = {
        re.sub(r"^(model|data)\.init_args\.", r"\1.", key): values
        for key, values in config["experiment"]["sweep"].items()
    }
    for key, values in sweep.items():
        if isinstance(values, list):
            sweep[key] = [_of_its_type(config, key, value) for value in values]
    seed = config["seed_everything"]
    if seed is True:
        raise UserError(
            "seed_everything is true, which draws a seed that nobody could repeat; give a number, or "
            "--experiment.seeds"
        )
    if seed is not False:
        config["experiment"]["seeds"] = seed
        config["seed_everything"] = False
    return config


def _of_its_type(config: dict[str, Any], key: str, value: Any) -> Any:
    """Returns a swept value; where a text is given for a number, that number."""
    if not isinstance(value, str) or key not in dict(flatten(config)) or key.endswith(".class_path"):
        return value
    of_run = copy.deepcopy(config)
    set_value(of_run, key, value)
    read = parse_config(of_run)[key]
    return read if read is None or isinstance(read, bool | int | float) else value


def _serializable(value: Any) -> Any:
    """Returns a loaded config without what could not be written as YAML."""
    if isinstance(value, dict):
        return {key: _serializable(item) for key, item in value.items() if not _is_placeholder(item)}
    return [_serializable(item) for item in value] if isinstance(value, list) else value


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("Unable to serialize instance")


def _make_room_for_optimizer(config: dict[str, Any]) -> None:
    """Lets a config not say what an optimizer of another class does otherwise; the model refuses the rest.

    What such an optimizer keeps has names of its own, so that it is recorded as what there is.
    """
    kind, model, recorder = DEFAULTS["model"], config["model"], config["recorder"]
    if model.get("optimizer") is None:
        return
    for name in getattr(kind, "REPLACED_BY_OPTIMIZER", ()):
        if model.get(name) == inspect.signature(kind).parameters[name].default:
            model[name] = None
    if recorder["tensors"] == [*RECORDABLE]:
        recorder["tensors"] = None


def _make_absolute(config: dict[str, Any]) -> None:
    """Makes the files the config names independent of the working folder."""
    for key in ("corpus_path", "tokenizer_path", "mask_path"):
        if isinstance(config["data"].get(key), str):
            path = local_path(config["data"][key], key=f"data.{key}")
            config["data"][key] = str(path.absolute())
    if config["recorder"]["tokens"] not in ("all", "dead", "live"):
        path = local_path(config["recorder"]["tokens"], key="recorder.tokens")
        config["recorder"]["tokens"] = str(path.absolute())
