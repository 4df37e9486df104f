"""Which key was meant: what is said after a key that there is not."""

import difflib
from collections.abc import Iterator, Sequence

_CALLED_ELSEWHERE = {
    "lr": ("learning_rate", "lr_schedule"),
    "rate": ("learning_rate",),
    "schedule": ("lr_schedule",),
    "scheduler": ("lr_schedule",),
    "wd": ("weight_decay",),
    "decay": ("weight_decay",),
    "beta1": ("adam_beta1",),
    "beta2": ("adam_beta2",),
    "betas": ("adam_beta1", "adam_beta2"),
    "eps": ("adam_epsilon",),
    "optim": ("optimizer",),
    "warmup": ("warmup_steps",),
    "ffn_dim": ("ff_dim",),
    "n_inner": ("ff_dim",),
    "epsilon": ("adam_epsilon",),
    "layers": ("n_layer",),
    "num_layers": ("n_layer",),
    "depth": ("n_layer",),
    "heads": ("n_head",),
    "num_heads": ("n_head",),
    "width": ("hidden_dim",),
    "d_model": ("hidden_dim",),
    "dim": ("hidden_dim",),
    "n_embd": ("hidden_dim",),
    "hidden_size": ("hidden_dim",),
    "seq_len": ("max_seq_len",),
    "context": ("max_seq_len",),
    "block_size": ("max_seq_len",),
    "n_positions": ("max_seq_len",),
    "tied": ("tie_word_embeddings",),
    "dtype": ("param_dtype", "dtypes"),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "steps": ("max_steps",),
    "num_steps": ("max_steps",),
    "epochs": ("max_epochs",),
    "num_epochs": ("max_epochs",),
    "clip": ("gradient_clip_val",),
    "grad_clip": ("gradient_clip_val",),
    "max_grad_norm": ("gradient_clip_val",),
    "seed": ("seeds",),
    "out": ("output_dir",),
    "output": ("output_dir",),
    "out_dir": ("output_dir",),
    "gpus": ("devices",),
    "retries": ("max_retries",),
    "workers": ("runs_per_device",),
    "threads": ("threads_per_run",),
    "text": ("corpus_path",),
    "every": ("every_n_steps",),
}
"""What a key is called in other programs -> what it is called here."""

_INSTEAD = {
    "model.dropout": "there is no dropout; it would come with a model of your own (--model my_lab.MyModule)",
}
"""Keys that nothing stands for."""


def meant(unknown: str, known: Sequence[str]) -> str:
    """Returns what to say after a key that there is not; empty if nothing is like it.

    Args:
        unknown: Dotted key.
        known: All dotted keys that there are.

    Example:
        >>> meant("model.lr", ["model.n_layer", "model.learning_rate", "trainer.max_steps"])
        '; did you mean model.learning_rate?'
    """
    if unknown in _INSTEAD and any(key.startswith("model.adam_") for key in known):
        return f"; {_INSTEAD[unknown]}"
    for found in _guesses(unknown, known):
        if found:
            return f"; did you mean {' or '.join(found[:2])}?"
    return ""


def listed(unknown: str, known: Sequence[str]) -> str:
    """Returns what to say after a key that nothing is like: the keys of its group, or where all are.

    Args:
        unknown: Dotted key.
        known: All dotted keys that there are.
    """
    group = unknown.partition(".")[0]
    inside = [key.partition(".")[2] for key in known if key.startswith(f"{group}.")]
    if inside and group != "trainer":
        return f"; {group} has {', '.join(inside)}"
    return "; `flannel-pl fit --help` lists every key"


def _guesses(unknown: str, known: Sequence[str]) -> Iterator[list[str]]:
    """Yields keys that may have been meant, the surest guess first."""
    group, _, name = unknown.rpartition(".")
    inside = [key for key in known if key.rpartition(".")[0] == group]
    yield [key for key in known if _name(key) == name]
    elsewhere = _CALLED_ELSEWHERE.get(name, ())
    yield [key for key in inside if _name(key) in elsewhere]
    yield _like(name, inside, 0.75)
    yield difflib.get_close_matches(unknown, known, n=1, cutoff=0.85)
    yield [key for key in known if _name(key) in elsewhere]
    if len(name) >= 4:
        yield [key for key in inside if name in _name(key) or _name(key) in name]
    yield _like(name, inside, 0.6)
    yield difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)


def _like(name: str, keys: Sequence[str], cutoff: float) -> list[str]:
    names = difflib.get_close_matches(name, [_name(key) for key in keys], n=1, cutoff=cutoff)
    return [key for key in keys if _name(key) in names]


def _name(key: str) -> str:
    return key.rpartition(".")[2]
