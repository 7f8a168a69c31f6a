"""Whether a grammar takes a text in a tokenizer's tokens."""

from __future__ import annotations

from functools import lru_cache

import llguidance
import llguidance.hf


@lru_cache(maxsize=64)
def _origin(tokenizer, text):
    table = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
    matcher = llguidance.LLMatcher(table, text, log_level=0)
    assert not matcher.get_error()
    return matcher


def passes(tokenizer, constraint, text):
    """Whether the text is all that the grammar wants, and nothing more."""
    assert constraint.kind == "grammar"
    matcher = _origin(tokenizer, constraint.value).deep_copy()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting())
