"""Added tokens: texts that a tokenizer never splits, such as ``<think>`` in most models that think."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokenizer's added tokens and their ids."""
    return {str(token.content): int(token_id) for token_id, token in tokenizer.added_tokens_decoder.items()}


def split_at_tokens(text: str, tokens: Iterable[str]) -> list[str]:
    """The text in parts: added tokens, longer ones first, and what stands between them. No part is empty.

    A token of white space alone splits nothing: it would take words apart that no tokenizer takes apart.
    """
    inside = sorted((token for token in tokens if token.strip() and token in text), key=len, reverse=True)
    if not inside:
        return [text] if text else []
    return [part for part in re.split(f"({'|'.join(map(re.escape, inside))})", text) if part]
