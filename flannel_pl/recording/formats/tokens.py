"""Whether an experiment has tokens that are live or dead; light, as `status` reads records."""

from collections.abc import Mapping
from typing import Any


def has_tokens(config: Mapping[str, Any], digests: Mapping[str, Any]) -> bool:
    """Tells whether an experiment has live and dead tokens: all do whose data are not of another class.

    Args:
        config: Of the experiment, by group.
        digests: Name of each data file -> the hash of its content.
    """
    return "class_path" not in config.get("data", {}) or "masks" in digests
