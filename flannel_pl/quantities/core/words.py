"""Messages name the keys of an experiment's config; a script gives arguments instead."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from flannel_pl.errors import RunError, UserError

_WORDS = {
    "with --launch.mix_environments true": "with label=RunLabel(mix_environments=True)",
    "choose another experiment.name": "record into another folder",
    "Choose another experiment.name or output_dir": "Record into another folder",
}
"""What an experiment's messages advise -> what a script does instead."""

_OPTION = re.compile(
    r"\b(recorder|trainer|launch)\.(?=(tensors|dtypes|tokens|live|(log_)?every_n_steps|checkpoint_every|parameters?)\b)"
)
"""What a config's key has before the name of an argument in a script."""


@contextmanager
def in_words_of_scripts(*, in_experiment: bool) -> Iterator[None]:
    """Lets messages name what a script gives, not the keys of an experiment's config.

    Args:
        in_experiment: Whether there is a config, so that they stay as they are.
    """
    try:
        yield
    except (UserError, RunError) as error:
        said = _OPTION.sub("", str(error))
        for ours, a_scripts in _WORDS.items():
            said = said.replace(ours, a_scripts)
        if in_experiment or said == str(error):
            raise
        raise type(error)(said) from None
