"""Recurrent states through many steps: whatever is drafted, rejected and shared, logits are the text's own."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig, StateConfig
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.schedule.prefix_cache import PrefixCache
from helix_jobs.engine.schedule.state_pool import StatePool
from helix_jobs.engine.schedule.state_table import StateTable
from tests.unit.engine.tiny_models import RECURRENT, VOCAB_SIZE, copy_of, ragged_logits, roughen, tiny_model

NUM_TEXTS, LENGTH, BLOCK = 4, 60, 4
DRAFTS = 4
CONFIG = StateConfig(num_slots=NUM_TEXTS, num_snapshots=5, num_drafts=DRAFTS)


def _text(index: int) -> list[int]:
    """Random tokens; the first 24 are those of another text too."""
    shared, own = random.Random(1000 + index // 2), random.Random(index)
    return [(shared if place < 24 else own).randrange(2, VOCAB_SIZE) for place in range(LENGTH)]


TEXTS = [_text(index) for index in range(NUM_TEXTS)]


@functools.cache
def decoder(family: str) -> Any:
    made = build_decoder(copy_of(roughen(tiny_model(family, seed=3))))
    made.pack()
    return made


@functools.cache
def expected(family: str) -> list[torch.Tensor]:
    return ragged_logits(decoder(family), TEXTS)


@dataclass
class Text:
    """One text on its way through steps."""

    ids: list[int]
    table: StateTable
    blocks: list[int]
    start: int = 0
    prefixes: list = field(default_factory=list)


class Texts:
    """Texts that are computed step by step, as the engine would."""

    def __init__(self, family: str) -> None:
        self.runner = ModelRunner(decoder(family), CacheConfig(num_blocks=200, block_size=BLOCK), CONFIG)
        self.expected = expected(family)
        self.pool = StatePool(CONFIG)
        self.prefix_cache = PrefixCache(BLOCK)
        self.texts = [
            Text(ids, StateTable(self.pool, BLOCK), list(range(40 * index, 40 * index + 20)))
            for index, ids in enumerate(TEXTS)
        ]
        for text in self.texts:
            self.prefix_cache.extend(text.prefixes, text.ids, LENGTH // BLOCK)
            text.table.want_snapshot(24)

    @torch.no_grad()
    def step(self, parts: list[tuple[int, int, int, int]], *, fails: bool = False) -> None:
        """One step of texts: each with its known tokens, and its drafts, of which the first ``right`` are right."""
        slices, tokens = [], []
        for index, known, drafts, _ in parts:
            text = self.texts[index]
            end = text.start + known
            slices.append(TokenSlice(known + drafts, text.start, text.blocks, text.table.begin(text.start, end)))
        for index, known, drafts, right in parts:
            text = self.texts[index]
            end = text.start + known
            wrong = [2 + (token + 1) % (VOCAB_SIZE - 2) for token in text.ids[end + right : end + drafts]]
            tokens.append([*text.ids[text.start : end + right], *wrong])
        plan = self.runner.plan(slices)
        logits = self.runner.forward(plan, tokens, range(plan.num_tokens))
        if fails:
            return
        for (index, known, _, right), offset in zip(parts, plan.offsets, strict=True):
            text = self.texts[index]
            rows = slice(text.start, text.start + known + right)
            got, expected = logits[offset : offset + known + right].double(), self.expected[index][rows].double()
            # Where a text is cut changes only how sums round.
            assert float((got - expected).norm() / expected.norm()) < 2e-4
            text.start += known + right
            text.table.settle(text.start)
            text.table.publish(text.prefixes, text.start)
        self.check()

    def begin_again(self, index: int) -> None:
        """Drop a text's states, and begin where a snapshot was kept; its keys and values are still there."""
        text = self.texts[index]
        text.table.release()
        found = text.table.longest(text.prefixes[: (text.start - 1) // BLOCK] if text.start else [])
        text.table.share(text.prefixes[:found])
        text.start = found * BLOCK
        self.check()

    def check(self) -> None:
        self.pool.check_integrity(text.table for text in self.texts)


PART = st.tuples(st.integers(1, 30), st.integers(0, DRAFTS), st.integers(0, DRAFTS), st.booleans())
STEP = st.tuples(st.lists(st.one_of(st.none(), PART), min_size=NUM_TEXTS, max_size=NUM_TEXTS), st.booleans())


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("family", [*RECURRENT, "jamba"])
@settings(max_examples=6, deadline=None)
@given(steps=st.lists(STEP, min_size=6, max_size=12), dropped=st.lists(st.integers(0, NUM_TEXTS - 1), max_size=4))
def test_a_state_is_the_one_behind_the_text_so_far(family, steps, dropped):
    texts = Texts(family)
    for number, (parts, fails) in enumerate(steps):
        chosen = []
        for index, part in enumerate(parts):
            left = LENGTH - texts.texts[index].start
            if part is None or left < 1:
                continue
            known, drafts, right, is_prompt = part
            known = min(known if is_prompt else 1, left)
            drafts = 0 if is_prompt else min(drafts, left - known)
            chosen.append((index, known, drafts, min(right, drafts)))
        if not chosen:
            continue
        if fails:
            texts.step(chosen, fails=True)
        texts.step(chosen)
        if number < len(dropped):
            texts.begin_again(dropped[number])
    for text in texts.texts:
        text.table.release(text.prefixes)
    texts.check()


@pytest.mark.parametrize("family", [*RECURRENT, "jamba"])
def test_a_text_begins_at_a_snapshot_of_another(family):
    texts = Texts(family)
    texts.step([(0, 30, 0, 0)])
    first, second = texts.texts[:2]
    assert second.table.longest(second.prefixes[:7]) == 6
    second.table.share(second.prefixes[:6])
    second.start, second.blocks[:6] = 24, first.blocks[:6]
    texts.step([(1, 10, 0, 0), (0, 1, 2, 1)])
    first.table.release(first.prefixes)
    assert second.table.longest(second.prefixes[:6]) == 0
    texts.step([(1, 1, 4, 4)])
    texts.step([(1, 1, 4, 0)])
