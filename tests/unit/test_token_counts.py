"""TokenCounts, and the counters that extend it."""

from __future__ import annotations

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.token_counts import TokenCounts


def test_counts_are_added_and_subtracted_whole():
    one = TokenCounts(prompt_tokens=5, cached_prompt_tokens=2, completion_tokens=7, draft_tokens=4, accepted_tokens=3)
    assert one + TokenCounts() == one
    assert one + one - one == one
    assert (one + one).tokens() == {name: 2 * count for name, count in one.tokens().items()}


def test_nothing_drafted_has_no_rate():
    assert TokenCounts().acceptance_rate is None
    assert TokenCounts(draft_tokens=4, accepted_tokens=0).acceptance_rate == 0.0
    assert TokenCounts(draft_tokens=4, accepted_tokens=3).acceptance_rate == 0.75


def test_a_difference_of_counters_has_the_later_peak_and_no_reason_that_did_not_occur():
    before = EngineCounters(steps=2, draft_tokens=3, peak_blocks=9, depth_reasons={"model": 2, "lookup": 1})
    after = EngineCounters(
        steps=5, draft_tokens=7, peak_blocks=11, target_seconds=1.5, depth_reasons={"model": 2, "lookup": 2, "mixed": 1}
    )
    assert after - before == EngineCounters(
        steps=3, draft_tokens=4, peak_blocks=11, target_seconds=1.5, depth_reasons={"lookup": 1, "mixed": 1}
    )
    assert (after - before).tokens() == TokenCounts(draft_tokens=4).tokens()


def test_a_sum_of_counters_has_the_reasons_of_both():
    both = EngineCounters(depth_reasons={"model": 2}) + EngineCounters(depth_reasons={"model": 1, "lookup": 4})
    assert both.depth_reasons == {"model": 3, "lookup": 4}
