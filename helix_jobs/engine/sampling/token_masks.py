"""Logits processors that take tokens out of the choice: bad words, ends that come too early, all but allowed tokens.

A masked token's logit is minus infinity, so its probability is 0 whatever comes later. Masks may leave no token at all;
``SpeculativeStep`` notices, and the request ends with an error.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NEVER: Final = float("-inf")


class BadWords:
    """Masks the last token of each word where the tokens before it stand already, as transformers does.

    Args:
        words: The token ids of each word, at least one.
        prompt_ids: Tokens of the prompt, where a word may begin.
    """

    keeps_argmax: Final = False

    def __init__(self, words: Iterable[Sequence[int]], prompt_ids: Sequence[int]) -> None:
        distinct = {tuple(word) for word in words}
        self._alone = torch.tensor(sorted(word[0] for word in distinct if len(word) == 1), dtype=torch.int64)
        # The token before a word's last one -> the tokens before the last one, and the last one.
        self._endings: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for *before, last in distinct:
            if before:
                self._endings[before[-1]].append((before, last))
        self._reach = max((len(word) - 1 for word in distinct), default=0)
        self._prompt_end = list(prompt_ids[-self._reach :]) if self._reach else []

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Mask what would complete a word."""
        logits[self._alone] = _NEVER
        if not self._endings:
            return
        recent = [*self._prompt_end, *output_ids[-self._reach :]]
        if recent:
            for before, last in self._endings.get(recent[-1], ()):
                if recent[-len(before) :] == before:
                    logits[last] = _NEVER


class MinTokens:
    """Masks every token that would end the output, until enough tokens are out.

    Args:
        min_tokens: Tokens before which the output does not end.
        end_ids: Tokens that end it, within the vocabulary.
    """

    keeps_argmax: Final = False

    def __init__(self, min_tokens: int, end_ids: Iterable[int]) -> None:
        self._min_tokens = min_tokens
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.int64)

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Mask the ends while fewer tokens stand."""
        if len(output_ids) < self._min_tokens:
            logits[self._end_ids] = _NEVER


class AllowedTokens:
    """Masks all tokens but some.

    Args:
        token_ids: Those that may be chosen, within the vocabulary.
    """

    keeps_argmax: Final = False

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = torch.tensor(token_ids, dtype=torch.int64)

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:  # noqa: ARG002  (the protocol's)
        """Mask the others."""
        kept = logits[self._token_ids]
        logits.fill_(_NEVER)
        logits[self._token_ids] = kept
