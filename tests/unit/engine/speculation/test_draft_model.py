"""The draft model's catching up over blocks that sequences share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.sequence import Sequence
from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter
from helix_jobs.engine.speculation.turn import Turn
from tests.unit.engine.tiny_models import VOCAB_SIZE, request, tiny_model

if TYPE_CHECKING:
    from helix_jobs.engine.attention.step_layout import TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan

CACHE = CacheConfig(num_blocks=40, block_size=4)
SHARED = [5, 9, 2, 30, 8, 8, 17, 3, 11, 4, 6, 21]
PROMPTS = {
    "a": [*SHARED, 7],
    "b": [*SHARED, 12, 13, 14, 15, 16, 17],
    "c": [*SHARED[:8], 1, 2, 3, 4, 5],  # shares two of the three blocks
    "d": [25, 24, 23],  # shares nothing
}


class Scene:
    """Sequences whose prompts the target has computed and the draft has not."""

    def __init__(self, names: str) -> None:
        self.pool = BlockPool(CACHE.num_blocks, CACHE.block_size)
        self.runner = ModelRunner(build_decoder(tiny_model(seed=3)), CACHE)
        self.plans: list[StepPlan] = []
        self._plan, self.runner.plan = self.runner.plan, self._spy  # type: ignore[method-assign]
        self.drafter = DraftModelDrafter(self.runner, VOCAB_SIZE)
        self.sequences = {name: self._decoding(name) for name in names}

    def _spy(self, slices: list[TokenSlice], least_tokens: int = 0) -> StepPlan:
        self.plans.append(self._plan(slices, least_tokens))
        return self.plans[-1]

    def _decoding(self, name: str) -> Sequence:
        sequence = Sequence(request(name, PROMPTS[name], max_tokens=40), BlockTable(self.pool), frozenset(), 256)
        sequence.share(sequence.num_cached_blocks())
        sequence.table.grow(len(sequence) + 10)
        sequence.commit([20], now=0.0)
        sequence.num_computed = len(sequence) - 1
        sequence.settle()
        return sequence

    def draft(self, names: str, depth: int = 4, forced: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
        turns = {name: self._turn(name, depth, forced) for name in names}
        with torch.no_grad():
            self.drafter.propose([*turns.values()])
        return {name: turn.draft.token_ids for name, turn in turns.items()}

    def _turn(self, name: str, depth: int, forced: tuple[int, ...]) -> Turn:
        sequence = self.sequences[name]
        return Turn(
            sequence, sequence.num_computed, num_known=1, is_decode=True, emits=True, depth=depth, forced=forced
        )


def alone(name: str) -> tuple[int, ...]:
    return Scene(name).draft(name)[name]


@pytest.mark.parametrize("order", ["ab", "ba", "abcd", "dcba", "cab", "bdac"])
def test_sequences_that_share_what_the_draft_misses_catch_up_together(order: str) -> None:
    scene = Scene("abcd")
    assert scene.draft(order) == {name: alone(name) for name in order}
    (rows,) = scene.plans[0].write_rows.values()
    assert len(np.unique(rows)) == len(rows)
    # Every distinct block once: three shared ones, and each sequence's own rest.
    prompts = {name: [*PROMPTS[name], 20] for name in order}
    full_blocks = {tuple(ids[: end + 4]) for ids in prompts.values() for end in range(0, len(ids) // 4 * 4, 4)}
    assert scene.plans[0].num_tokens == 4 * len(full_blocks) + sum(len(ids) % 4 for ids in prompts.values())


def test_what_another_has_filled_is_not_computed_again() -> None:
    scene = Scene("abc")
    assert scene.draft("a")["a"] == alone("a")
    for sequence in scene.sequences.values():
        sequence.settle()
    scene.plans.clear()
    assert scene.draft("cb") == {name: alone(name) for name in "bc"}
    assert scene.plans[0].num_tokens == sum(len(scene.sequences[name]) for name in "bc") - 12 - 8


def test_one_that_misses_less_reads_what_one_that_misses_more_computes() -> None:
    scene = Scene("ab")
    scene.sequences["b"].num_draft_computed = 6  # in the middle of the second block, whose rows are then computed anew
    assert scene.draft("ba")["a"] == alone("a")
    assert scene.sequences["b"].num_draft_computed >= 12
    (rows,) = scene.plans[0].write_rows.values()
    assert len(np.unique(rows)) == len(rows)


def test_a_pass_that_fails_leaves_nothing_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise RuntimeError("lost")

    scene = Scene("ab")
    with monkeypatch.context() as patched:
        patched.setattr(scene.runner, "run", lose)
        with pytest.raises(RuntimeError, match="lost"):
            scene.draft("ab")
    assert scene.draft("ab") == {name: alone(name) for name in "ab"}


FORCED = (14, 3, 22, 9, 1)


@pytest.mark.parametrize("num_accepted", [0, 2, 5, 7])
def test_it_drafts_behind_forced_tokens_as_behind_accepted_ones(num_accepted: int) -> None:
    scene, other = Scene("ad"), Scene("ad")
    drafted = scene.draft("ad", depth=3, forced=FORCED)
    for name in "ad":
        other.sequences[name].commit([*FORCED], now=0.0)
    assert drafted == other.draft("ad", depth=3)
    # What the draft's cache holds of tokens that are not accepted does not count, and no other sequence shares it.
    accepted = {name: [*FORCED, *drafted[name]][:num_accepted] for name in "ad"}
    fresh = Scene("ad")
    for one in (scene, fresh):
        for name in "ad":
            one.sequences[name].commit([*accepted[name], 7], now=0.0)
            one.sequences[name].settle()
            one.sequences[name].table.grow(len(one.sequences[name]) + 10)
    assert scene.draft("ad") == fresh.draft("ad")
