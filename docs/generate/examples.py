"""What griffe, which reads the docstrings, has to be told about them."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Takes `Example:` for what it takes `Examples:` for: lines of Python and what they print."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Reads one docstring anew."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
