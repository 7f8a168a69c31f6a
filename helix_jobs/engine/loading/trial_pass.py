"""One pass over a fixed text after loading: whether a model's activations stay within its dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.model.runner import ModelRunner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.model.decoder import Decoder

_NUM_TOKENS: Final = 64
_BLOCK_SIZE: Final = 16
# Activations overflow at the first token and at marks that end something, so the text has many such marks.
TRIAL_TEXT: Final = "Question 1: what is 2 + 2?\nAnswer: four. " * 8
# Coprime to the sizes of real vocabularies, so that ids spread over all of one.
_STRIDE: Final = 7919


@torch.no_grad()
def logits_are_finite(decoder: Decoder, text_ids: Iterable[int]) -> bool:
    """Whether a pass over some 64 tokens yields neither NaN nor infinity. Its cache is freed afterwards.

    Args:
        decoder: The model.
        text_ids: Token ids of ``TRIAL_TEXT``.
    """
    runner = ModelRunner(decoder, CacheConfig(num_blocks=_NUM_TOKENS // _BLOCK_SIZE, block_size=_BLOCK_SIZE))
    plan = runner.plan([TokenSlice(_NUM_TOKENS, 0, range(runner.cache.num_blocks))])
    logits = runner.forward(plan, [_trial_ids(decoder.num_embeddings, text_ids)], range(_NUM_TOKENS))
    assert logits is not None, "every row was asked for"
    return bool(torch.isfinite(logits.cpu()).all())


def _trial_ids(known: int, text_ids: Iterable[int]) -> list[int]:
    spread = [index * _STRIDE % known for index in range(_NUM_TOKENS)]
    # Half from the text and half spread; more of the latter if the text has few tokens.
    return ([token for token in text_ids if token < known][: _NUM_TOKENS // 2] + spread)[:_NUM_TOKENS]
