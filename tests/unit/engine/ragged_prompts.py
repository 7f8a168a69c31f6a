"""Random prompts of different lengths."""

from __future__ import annotations

import random

from tests.unit.engine.tiny_models import VOCAB_SIZE


def prompts(count=6, seed=4):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(2, 30))] for _ in range(count)]
