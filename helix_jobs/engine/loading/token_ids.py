"""Token ids in a directory's tokenizer files, before the tokenizers library believes them.

The library lists every id between the vocabulary and an id far beyond it: a single id of a thousand million keeps it
busy for an hour and prints gigabytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Ids that any vocabulary may leave out, beside as many as it has tokens. Real vocabularies leave out a few.
_HOLES: Final = 10_000


def check_token_ids(name: str, folder: Path) -> None:
    """Refuse ids that lie far beyond the number of tokens; files that are no JSON are left to transformers.

    Raises:
        ModelError: The message names the id.
    """
    ids = list(_ids(folder))
    limit = 2 * len(ids) + _HOLES
    for token_id in ids:
        if not 0 <= token_id < limit:
            raise ModelError(
                f"model {name}: its tokenizer has the token id {token_id!s:.40} among {len(ids)} tokens; fetch the "
                "tokenizer's files again"
            )


def _ids(folder: Path) -> Iterator[int]:
    tokenizer = _object(folder / "tokenizer.json")
    vocabulary = _value(tokenizer.get("model"), "vocab")
    if isinstance(vocabulary, list):  # pieces and scores: a piece's place is its id
        yield from range(len(vocabulary))
    added = tokenizer.get("added_tokens")
    found: list[Any] = [_value(token, "id") for token in added] if isinstance(added, list) else []
    for mapping in (vocabulary, _object(folder / "vocab.json"), _object(folder / "added_tokens.json")):
        found += mapping.values() if isinstance(mapping, dict) else []
    decoder = _object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    found += map(_number, decoder) if isinstance(decoder, dict) else []
    yield from (token_id for token_id in found if isinstance(token_id, int))


def _number(key: str) -> int | None:
    """The id that transformers reads from a key; None if it refuses the file for it (too many digits, or none)."""
    try:
        return int(key)
    except ValueError:
        return None


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _value(found: object, key: str) -> object:
    return found.get(key) if isinstance(found, dict) else None
