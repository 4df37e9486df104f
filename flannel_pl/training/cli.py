"""The command line of `fit` and `plan`: LightningCLI with the config groups of an experiment.

`resolve` turns arguments into one complete config of plain values. `FlannelCLI` is also what builds the
Trainer, module and data of one run from such a config (see `training/fit.py`).
"""

import contextlib
import copy
import difflib
import functools
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, cast, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.arguments import Text, loads, plain, read_exactly, typed
from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentConfig, LaunchConfig, flatten, local_path, set_value
from flannel_pl.models.flannel_data import FlannelData
from flannel_pl.models.tied_gpt2 import TiedGPT2
from flannel_pl.plugins import launcher_settings, launchers
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.recording.formats.schema import RECORDABLE
from flannel_pl.small_files import read_small
from flannel_pl.training.refusals import refusal

# Makes the docstring below each field of a config dataclass its --help text.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

read_exactly()

MAX_CONFIG_BYTES = 2**24

RUN_FOLDER = "."
"""A logger's save_dir that stands for the folder of the run."""


class FlannelParser(LightningArgumentParser):
    """A parser whose complaints are one line and end in a hint, instead of a page of usage."""

    @override
    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Namespace:
        """Reads a config as UTF-8, whatever the locale is."""
        if str(path) == "-":
            return cast("Namespace", super().parse_path(path, *arguments, **options))
        file = Path(path)
        content = os.fsdecode(file.read_bytes())  # as this process has other texts
        with contextlib.chdir(file.parent):
            return cast("Namespace", self.parse_string(content, file.name, *arguments, **options))

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        types = {action.dest: action._typehint for action in self._actions if hasattr(action, "_typehint")}
        text, hint = refusal(message, types), self._hint(" ".join(message.split()))
        raise UserError(text + hint * (hint not in text))

    def _hint(self, message: str) -> str:
        if "Logger" in message and "save_dir" in message:
            return "; give the logger a folder, e.g. init_args: {save_dir: .}, which is that of the run"
        if match := re.search(r"argument (--[\w.]+): expected one argument", message):
            return f"; give it one, e.g. {match[1]}=-x where it begins with a dash"
        for pattern in (
            r"unrecognized arguments: --?([\w.]+)",
            r"ambiguous option: --?([\w.]+)",
            r"Option '([\w.]+)' is not accepted",
            r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        ):
            if match := re.search(pattern, message):
                return self._nearest(".".join(match.groups()))
        return ""

    def _nearest(self, unknown: str) -> str:
        known = [*self.get_defaults(skip_validation=True).keys(), "config", "print_config", "help"]
        nearest = difflib.get_close_matches(unknown, known, n=1)
        nearest = nearest or [key for key in known if key.split(".")[-1] == unknown]
        return f"; did you mean {nearest[0]}?" if nearest else "; `flannel-pl fit --help` lists every key"


class FlannelCLI(LightningCLI):
    """LightningCLI with the groups trainer, model, data, recorder, experiment and launch.

    Args:
        args: Command line arguments, or a complete config as nested dicts.
        build: Whether to make Trainer, module and data of the config, or only to read it.

    Raises:
        UserError: If an argument or a config file cannot be read; with the nearest key there is.
    """

    def __init__(self, args: Sequence[str] | dict[str, Any], *, build: bool = False) -> None:
        self._build = build
        super().__init__(
            TiedGPT2,
            FlannelData,
            run=False,
            args=cast("Any", args),
            auto_configure_optimizers=False,
            seed_everything_default=False,
            save_config_callback=None,
            load_from_checkpoint_support=False,
            parser_class=FlannelParser,
            parser_kwargs={
                "prog": "flannel-pl fit",
                "description": "Trains every run of an experiment and gathers the recordings into one file.",
                "allow_abbrev": False,  # the beginning of a key may be a misspelt one
            },
        )

    @override
    def setup_parser(self, *arguments: Any) -> None:
        if self._build:
            self.parser = the_parser()
        else:
            super().setup_parser(*arguments)

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
        parser.set_defaults({"recorder.parameter": TiedGPT2.EMBEDDING, "recorder.tensors": [*RECORDABLE]})
        parser.link_arguments("model.vocab_size", "data.vocab_size")
        parser.link_arguments("model.max_seq_len", "data.max_seq_len")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Not LightningCLI's own: it warns whenever arguments are passed in while sys.argv has some too.
        self.config = parse_config(args) if isinstance(args, dict) else parser.parse_args(args)

    @override
    def instantiate_classes(self) -> None:
        if self._build:
            super().instantiate_classes()

    @override
    def _set_seed(self) -> None:
        """Does nothing: a run is seeded with its own seed, see `training/fit.py`."""


@functools.cache
def the_parser() -> LightningArgumentParser:
    """Returns the parser of every config; making one takes longer than the first steps of a small run."""
    parser = FlannelCLI([]).parser
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
    return cast("Namespace", plain(the_parser().parse_object(typed(config))))


def recorder_arguments(recorder: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `StepRecorder` that a config says, with quantities in place of paths."""
    kind = list[Quantity] | None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--quantities", type=kind)
    parsed = parser.parse_object({"quantities": typed(recorder.get("quantities"))})
    return {**recorder, "quantities": parser.instantiate_classes(parsed).quantities}


def to_yaml(config: dict[str, Any]) -> str:
    """Returns a complete config as YAML that `fit --config` reads back as the same values.

    Without the keys of launchers that it does not ask for: where it is read they may not be installed.
    """
    parsed = the_parser().parse_object(typed(config))
    for name in launcher_settings().keys() - {config["launch"]["launcher"]}:
        del parsed[f"launch.{name}"]
    return str(the_parser().dump(parsed, skip_unset=False))


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """Reads the arguments of `fit` or `plan` into one complete config.

    `--config` may stand anywhere: the other arguments override it. `--help` and `--print_config` print and
    end the process, as in every LightningCLI.

    Raises:
        UserError: If an argument, a key or a value is not accepted.
    """
    in_order = _config_first(arguments)
    for word, following in itertools.pairwise([*in_order, ""]):
        if word.startswith(("--config", "-c")):
            _check_config_file(word.partition("=")[2] or following)
    parsed = the_parser().parse_args(_with_logger_folders(in_order))
    with warnings.catch_warnings():
        # The default of an argument that is no plain value: left out below, so that it stays the default.
        warnings.filterwarnings("ignore", message=r"[\s\S]*Unable to serialize instance")
        try:
            text = the_parser().dump(parsed, skip_unset=False)
        except ValueError as error:  # e.g. an enumeration that is the default of a callback's argument
            lines = str(error).splitlines()
            reason = "; ".join(line.strip(" -") for line in lines if "represent" in line) or lines[-1]
            raise UserError(
                f"a value of trainer cannot be written down ({reason.strip()}); give that argument as a "
                "plain value, e.g. --trainer.callbacks.interval step"
            ) from error
    config: dict[str, Any] = _serializable(loads(text))
    infinite = [
        key for key, value in flatten(config) if isinstance(value, float) and not math.isfinite(value)
    ]
    if infinite:
        raise UserError(f"{', '.join(infinite)}: expected a finite number")
    _make_absolute(config)
    sweep = config["experiment"]["sweep"]
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
    if not isinstance(value, str) or key not in dict(flatten(config)):
        return value
    of_run = copy.deepcopy(config)
    set_value(of_run, key, value)
    read = parse_config(of_run)[key]
    return read if read is None or isinstance(read, bool | int | float) else value


def _check_config_file(name: str) -> None:
    """Refuses what would be read for ever; what a shell makes of <(command) is no such thing."""
    path = Path(name)
    if not path.exists() or name.startswith("/dev/fd/"):
        return
    try:
        read_small(path, max_bytes=MAX_CONFIG_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"cannot read the config {path}: {what}") from error


def _serializable(value: Any) -> Any:
    """Returns a loaded config without what could not be written as YAML."""
    if isinstance(value, dict):
        return {key: _serializable(item) for key, item in value.items() if not _is_placeholder(item)}
    return [_serializable(item) for item in value] if isinstance(value, list) else value


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("Unable to serialize instance")


def _make_absolute(config: dict[str, Any]) -> None:
    """Makes the files the config names independent of the working folder."""
    for key in ("corpus_path", "tokenizer_path", "mask_path"):
        if config["data"][key] is not None:
            path = local_path(config["data"][key], key=f"data.{key}")
            config["data"][key] = str(path.absolute())
    if config["recorder"]["tokens"] not in ("all", "dead", "live"):
        path = local_path(config["recorder"]["tokens"], key="recorder.tokens")
        config["recorder"]["tokens"] = str(path.absolute())


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front, because what comes later wins."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config", "-c"):
            files += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            others.append(argument)
    return files + others


def _with_logger_folders(arguments: Sequence[str]) -> list[str]:
    """Gives a logger that is asked for by name alone the folder that its class insists on."""
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        result.append(argument)
        match = re.fullmatch(r"--trainer\.logger(?:\.class_path|\+)?(?:=(.+))?", argument)
        if match:
            name = match[1] or next(rest, "")
            if not match[1]:
                result.append(name)
            if name.endswith(("TensorBoardLogger", "CSVLogger")):
                result.append(f"--trainer.logger.save_dir={RUN_FOLDER}")
    return result
