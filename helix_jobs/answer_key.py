"""answer_key: one short text for all that the answer of a request depends on, the model and its worker aside."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# 160 bits of a SHA-256: nobody finds two requests with one key, and a million of them take little room in an index.
KEY_CHARS: Final = 40
# What a request carries beside its question. The endpoint decides how an answer is written to a file, and no more.
_BESIDE: Final = frozenset({"metadata", "seed", "endpoint", "stream"})
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


def answer_key(request: Mapping[str, Any], *, wanted: bool | None) -> str | None:
    """The key of a request, which equal requests share; None if its answer is not to be taken from another job.

    A greedy request draws no random number, so its seed is left out. A seed that came from batch and line is no part of
    what was asked: a person who wants such a line's answer again takes whichever was drawn before.

    Args:
        request: The content of ``jobs.request``, with the batch's defaults applied.
        wanted: Whether the person wants stored answers; None where each request says so by being repeatable, that is
            greedy or with a seed of its own.
    """
    sampling = request.get("sampling") or {}
    is_greedy = not sampling.get("temperature", 0)
    if wanted is False or (wanted is None and not is_greedy and "seed" not in sampling):
        return None
    drawn = sorted((name, value) for name, value in sampling.items() if not (is_greedy and name == "seed"))
    asked = {**request, "sampling": dict(drawn)}
    ordered = {name: asked[name] for name in sorted(asked.keys() - _BESIDE)}
    return sha256(_COMPACT.encode(ordered).encode()).hexdigest()[:KEY_CHARS]
