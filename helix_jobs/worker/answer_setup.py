"""answer_setup: which stored answers a worker may take, from what its own answers depend on."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.storage.answer_cache import AnswerSetup

if TYPE_CHECKING:
    from collections.abc import Mapping

# Hexadecimal digits of each of a key's two parts: the model's, and that of how it computes.
_PART: Final = 16
# What the model is. A draft changes no greedy answer, and no sampled one while the depth is chosen by the engine.
_MODEL: Final = ("engine", "adapters")
# How it computes: the number formats, the code, and the limits at which an answer is cut off.
_COMPUTATION: Final = (
    *("helix", "dtype", "device", "kernels", "is_reproducible", "speculation_depth", "max_model_len"),
    *("libraries", "system"),
)
_FAKE: Final = "fake"
_AUTO: Final = "auto"


def answer_setup(setup: Mapping[str, Any], answer_cache: str) -> AnswerSetup | None:
    """Whose answers a worker may take; None for nobody's, and then nobody takes its own.

    A model without a digest may be another tomorrow, so its answers are nobody else's.

    Args:
        setup: What the worker's answers depend on, as its row says.
        answer_cache: The setting.
    """
    target = setup.get("target", {})
    name = target.get("name") if setup.get("engine") == _FAKE else None
    identity = target.get("digest") or name
    if answer_cache == "off" or identity is None:
        return None
    computation = {key: setup.get(key) for key in _COMPUTATION}
    if setup.get("speculation_depth") not in (_AUTO, 0):
        computation["draft"] = setup.get("draft")
    model = _part({"target": identity, **{key: setup.get(key) for key in _MODEL}})
    own = model + _part(computation)
    if answer_cache == "model":
        return AnswerSetup(own, model + "0" * _PART, model + "f" * _PART)
    return AnswerSetup(own, own, own)


def _part(facts: Mapping[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_PART]
