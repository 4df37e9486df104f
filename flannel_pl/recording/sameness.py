"""Which keys of a config can change a bit of a recording: one definition, for all that compare configs.

Every key of every group can, but for those listed here. So a key that is new is compared until somebody has
thought about it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from flannel_pl.dotted import flatten
from flannel_pl.texts import for_file

INCIDENTAL = frozenset(
    {
        # Where runs are trained, and how many side by side. What decides bits of it, the kind of device and
        # the number of threads, is `settled` in experiment.json and compared there.
        *("launch", "trainer.accelerator", "trainer.devices"),
        # What is shown and logged.
        *("trainer.logger", "trainer.log_every_n_steps", "trainer.profiler", "trainer.enable_progress_bar"),
        *("trainer.enable_model_summary", "trainer.enable_checkpointing", "trainer.default_root_dir"),
        *("trainer.enable_autolog_hparams", "trainer.model_registry", "recorder.live"),
        # How files are called and where they are, and what is made of finished runs.
        *("experiment.name", "experiment.output_dir", "experiment.gather", "experiment.keep_shards"),
        # Which runs there are: number, seed and swept values are compared run by run.
        *("experiment.seeds", "experiment.sweep", "experiment.run", "seed_everything"),
    }
)

_DATA_FILES = ("data.corpus_path", "data.tokenizer_path", "data.mask_path")
"""Of these the content counts, wherever they lie: their digests are compared, where the data are ours."""

LATER: dict[str, Any] = {
    "model.init_range": 0.02,
    "model.head_init": "drawn",
    "model.warmup_steps": 0,
    "data.windows": "overlapping",
    "data.drop_last": False,
    "data.phantom_tokens": 0,
}
"""Keys that came after the first recordings -> what a config without them means, unless that is null."""


SHARES = frozenset(
    f"trainer.{name}"
    for name in (
        *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        *("overfit_batches", "val_check_interval"),
    )
)
"""Keys of which 1 is a number of batches, and 1.0 all of them."""


_NOTHING = frozenset(
    f"trainer.{name}"
    for name in (
        *("gradient_clip_val", "deterministic", "benchmark", "min_epochs", "min_steps", "max_time"),
        *("overfit_batches", "callbacks", "plugins", "reload_dataloaders_every_n_epochs", "fast_dev_run"),
    )
)
"""Keys of which null, false, 0 and nothing mean the same."""

_WHEN_NULL = {
    "trainer.gradient_clip_algorithm": "norm",
    "trainer.limit_train_batches": 1.0,
    "trainer.max_epochs": -1,
}
"""Key -> what null means."""

_MOOT = frozenset(f"trainer.{name}" for name in ("strategy", "sync_batchnorm", "use_distributed_sampler"))
"""Keys that decide nothing where a run has one device."""

_SEEDS = ("model.init_seed", "data.order_seed")

_OF_VALIDATION = frozenset(
    f"trainer.{name}"
    for name in (
        *("limit_val_batches", "limit_test_batches", "limit_predict_batches", "num_sanity_val_steps"),
        *("val_check_interval", "check_val_every_n_epoch", "inference_mode"),
    )
)
"""Keys that decide nothing where nobody acts on a validation, as callbacks may."""


def comparable(key: str, value: Any) -> Any:
    """Returns a value of a config key such that equal ones mean the same, and others do not."""
    return repr(value) if key in SHARES and value is not None else value


def decisive(config: Mapping[str, Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Returns what of a config decides bits, by dotted key, in one normal form.

    Args:
        config: A resolved config, by group.
        without: Keys that are left out as well, e.g. those that were swept.
    """
    # As it is read from a file: keys are text, and texts are Unicode.
    flat = dict(flatten(for_file(json.loads(json.dumps(config)))))
    left_out = INCIDENTAL.union(without, () if "data.class_path" in flat else _DATA_FILES)
    groups = {key.partition(".")[0] for key in flat}  # as checkpoints keep it, keys are dotted already
    ours = {group for group in groups if f"{group}.class_path" not in flat}
    later = {key: value for key, value in LATER.items() if key.partition(".")[0] in ours}
    return {key: value for key, value in (later | flat).items() if not _is_below(key, left_out)}


def differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields key, value in `got` and value in `expected` wherever two of `decisive` differ.

    A key that one of them lacks is None there: that is what an option is that is not given.
    """
    for key in sorted(got.keys() | expected.keys()):
        ours, theirs = comparable(key, got.get(key)), comparable(key, expected.get(key))
        if ours != theirs:
            yield key, ours, theirs


def meaning(config: Mapping[str, Any], *, accelerator: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run's config comes to: equal ones are trained to the same bits, in whatever words.

    Seeds that are left to the run's are None, see `with_seed`.

    Args:
        config: The run's resolved config, by group.
        accelerator: The kind of device that it is trained on.
        known: Key -> what it comes to, where the config alone does not tell; and what else decides bits.
    """
    meant = {**decisive(config), **known}
    for key in _NOTHING & meant.keys():
        meant[key] = meant[key] or None
    for key, default in _WHEN_NULL.items():
        meant[key] = default if meant.get(key) is None else meant[key]
    moot = set(_MOOT)
    if meant.get("trainer.gradient_clip_val") is None:
        moot.add("trainer.gradient_clip_algorithm")
    if accelerator == "cpu":
        moot |= {"model.init_on", "trainer.benchmark"}
    if meant.get("trainer.callbacks") is None:
        moot |= _OF_VALIDATION
    left_to_seed = [key for key in _SEEDS if meant.get(key) is None]
    others = ("trainer.callbacks", "trainer.plugins", "model.class_path", "data.class_path")
    if any(meant.get(key) is not None for key in others):
        left_to_seed.append("seed")  # which may draw numbers
    meant.update(dict.fromkeys(left_to_seed))
    return {
        key: _one_number(comparable(key, value)) for key, value in meant.items() if not _is_below(key, moot)
    }


def with_seed(meant: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns what a `meaning` comes to with a seed."""
    return {**meant, **{key: seed for key in (*_SEEDS, "seed") if key in meant and meant[key] is None}}


def _one_number(value: Any) -> Any:
    """Returns a number such that 1 and 1.0 are the same; 0 and -0.0 are not."""
    is_whole = type(value) is float and value.is_integer() and str(value) != "-0.0"
    return int(value) if is_whole else value


def as_read(value: Any) -> Any:
    """Returns a swept value such that a text of a number is that number, as earlier versions did not have it.

    Example:
        >>> as_read("1e-3"), as_read("true"), as_read("bf16")
        (0.001, True, 'bf16')
    """
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return read if read is None or isinstance(read, bool | int | float) else value


def has_own_data(swept: Iterable[str]) -> bool:
    """Tells whether runs that differ in these keys may be trained on data files of their own."""
    return any(key.startswith("data.") and key.endswith("_path") for key in swept)


def _is_below(key: str, others: Set[str]) -> bool:
    """Tells whether a dotted key is one of the others, or in a group of theirs."""
    words = key.split(".")
    prefixes = {".".join(words[: count + 1]) for count in range(len(words))}
    return not prefixes.isdisjoint(others)
