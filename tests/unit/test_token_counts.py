"""TokenCounts, and the counters that extend it."""

from __future__ import annotations

import dataclasses

import pytest

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.storage.records import RunTotals
from helix_jobs.token_counts import TokenCounts, total_tokens


def test_each_count_is_summed():
    one = TokenCounts(prompt_tokens=5, cached_prompt_tokens=2, completion_tokens=7, draft_tokens=4, accepted_tokens=3)
    assert total_tokens([]) == TokenCounts()
    assert total_tokens([one]) == one
    assert total_tokens([one, TokenCounts(), one]).tokens() == {name: 2 * count for name, count in one.tokens().items()}
    assert total_tokens([RunTotals(draft_tokens=4, steps=2), one]) == total_tokens([TokenCounts(draft_tokens=4), one])


@pytest.mark.parametrize("record", [TokenCounts(), RunTotals(), EngineCounters()])
def test_records_are_not_added(record):
    with pytest.raises(TypeError, match="unsupported operand"):
        record + record


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


def test_every_other_counter_is_subtracted():
    names = [field.name for field in dataclasses.fields(EngineCounters) if field.name != "depth_reasons"]
    before = EngineCounters(**{name: place for place, name in enumerate(names)})
    after = EngineCounters(**{name: 3 * place for place, name in enumerate(names)})
    spent = after - before
    assert {name: getattr(spent, name) for name in names} == {
        name: (3 if name == "peak_blocks" else 2) * place for place, name in enumerate(names)
    }
