"""Charts stay in their box, and say what they show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.reports.batch_charts import fill_chart, first_token_chart, length_chart
from helix_jobs.reports.charts import HEIGHT, WIDTH, Series, chart
from helix_jobs.storage.batch_figures import Span
from helix_jobs.storage.batch_runs import BatchRun

BEGUN = datetime(2026, 11, 1, tzinfo=UTC)


@given(st.lists(st.tuples(st.none() | st.floats(0, 1e9), st.none() | st.floats(0, 1e9)), min_size=1, max_size=60))
@settings(max_examples=40)
def test_columns_stand_upon_each_other_inside_the_box(values):
    series = [Series(name, [pair[at] for pair in values], ["says"] * len(values)) for at, name in enumerate("ab")]
    made = chart("title", "words", *series, ticks_x=("", "", ""))
    for bar in made.bars:
        assert -0.01 <= bar.y <= bar.y + bar.height <= HEIGHT + 0.05
        assert 0 <= bar.x < bar.x + bar.width <= WIDTH + 0.05
    assert made.legend == ("a", "b")


def test_lengths_are_drawn_in_forty_columns_at_most():
    made = length_chart({1: 5, 7: 4, 640: 1})
    assert made.ticks_x[-1].words == "660"
    assert made.bars[0].words == "9 answers (90.0 %) of 0 to 19 tokens"
    assert made.words == "Half of the answers have at most 1 token, nine of ten at most 7, the longest 640."
    assert len(length_chart(dict.fromkeys(range(39), 1)).bars) == 39


def test_first_tokens_are_drawn_by_growing_steps():
    made = first_token_chart({3: 1, 5: 3})
    assert made is not None
    assert [bar.words for bar in made.bars] == [
        "1 answer began after 30 ms or less",
        "3 answers began after 70 ms or less",
    ]
    assert first_token_chart({3: 1}) is None


def run(start, end, fill, **changes):
    values = {"worker_id": "w", "slots": 8, "steps": 10, "completion_tokens": 5, "draft_tokens": 0}
    values |= dict.fromkeys(("accepted_tokens", "preemptions"), 0)
    values |= dict.fromkeys(("schedule_seconds", "draft_seconds", "target_seconds", "verify_seconds"), 0.0)
    values |= {"mean_depth": None, "depth_reasons": None}
    moments = {"started_at": BEGUN + timedelta(seconds=start), "finished_at": BEGUN + timedelta(seconds=end)}
    return BatchRun(mean_batch_size=fill, **moments, **{**values, **changes})


def test_a_run_counts_in_each_column_that_it_lies_in():
    made = fill_chart(Span(BEGUN, 40.0, 4), [run(-10, 15, 8.0), run(15, 20, 4.0), run(35, 99, 2.0)])
    assert made is not None
    assert [bar.words for bar in made.bars] == [
        "100 % of the slots in use, from 0.0 s to 10 s",
        # 2 of the first run's 10 steps and all 10 of the second's.
        "58 % of the slots in use, from 10 s to 20 s",
        "25 % of the slots in use, from 30 s to 40 s",
    ]
    assert fill_chart(Span(BEGUN, 40.0, 4), []) is None
