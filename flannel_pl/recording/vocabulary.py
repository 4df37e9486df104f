"""What tokens say: their texts, by the tokenizer that a recording was made with, where that is here."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flannel_pl.paths import cache_home
from flannel_pl.small_files import read_small

BUILTIN = "builtin-*/*.json"
"""In the cache: the tokenizers of built-in corpora."""


def vocabulary_of(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Returns the text of every token, as the tokenizer has it -> the token's number.

    A recording names a file and its digest. Only a file with that digest is believed: another one has other
    tokens, and a foreign recording may name whatever it likes.

    Args:
        metadata: Of the recording.

    Returns:
        Empty where the tokenizer is not known, or not here.
    """
    provenance = metadata.get("provenance")
    data = provenance.get("data") if isinstance(provenance, dict) else None
    digest = data.get("tokenizer") if isinstance(data, dict) else None
    if not isinstance(digest, str):
        return {}
    for path in _candidates(metadata):
        try:
            content = read_small(path)
        except (OSError, ValueError):
            continue
        if hashlib.sha256(content).hexdigest() == digest:
            return dict(_vocabulary(content))
    return {}


def _candidates(metadata: Mapping[str, Any]) -> Iterator[Path]:
    config = metadata.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    named = data.get("tokenizer_path") if isinstance(data, dict) else None
    if isinstance(named, str):
        yield Path(named)
    else:
        yield from sorted(cache_home().glob(BUILTIN))


def _vocabulary(content: bytes) -> Iterator[tuple[str, int]]:
    """Gives the text and id of every token in a `tokenizers` JSON file; nothing of one that is none."""
    try:
        tokenizer: Any = json.loads(content)
    except (ValueError, RecursionError):
        return
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        yield from ((text, token) for text, token in words.items() if isinstance(token, int))
    elif isinstance(words, list):  # unigrams: pairs of a text and its score
        for token, pair in enumerate(words):
            if isinstance(pair, list) and pair and isinstance(pair[0], str):
                yield pair[0], token
    for added in tokenizer.get("added_tokens") or () if isinstance(tokenizer, dict) else ():
        if isinstance(added, dict) and isinstance(added.get("content"), str):
            yield added["content"], added.get("id", -1)
