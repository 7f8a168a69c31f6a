"""Charts stay in their box, and say what they show."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.reports.batch_charts import fill_chart, first_token_chart, length_chart
from helix_jobs.reports.charts import HEIGHT, WIDTH, Series, chart
from helix_jobs.storage.batch_figures import TTFT_EDGES, Span, counted_length
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
    assert made.words == "Half of the answers have at most 1 token, nine of ten at most 7, all at most 649."
    assert len(length_chart(dict.fromkeys(range(39), 1)).bars) == 39


def test_first_tokens_are_drawn_by_growing_steps():
    made = first_token_chart({3: 1, 5: 3})
    assert made is not None
    assert [bar.words for bar in made.bars] == [
        "1 answer began after 20 ms to 30 ms",
        "3 answers began after 50 ms to 70 ms",
    ]
    assert made.words == "Half of the answers began within 70 ms, nine of ten within 70 ms. The steps grow."
    assert [tick.words for tick in made.ticks_x] == ["20 ms", "", "70 ms"]
    assert first_token_chart({3: 1}) is None


def test_the_first_and_the_last_step_to_a_first_token_have_one_edge():
    made = first_token_chart({0: 1, len(TTFT_EDGES): 1})
    assert made is not None
    assert [bar.words for bar in made.bars] == ["1 answer began within 10 ms", "1 answer began after 700 s or more"]
    assert made.words == "Half of the answers began within 10 ms, nine of ten after 700 s or more. The steps grow."
    assert [tick.words for tick in made.ticks_x] == ["0 s", "", "more"]


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=50))
@settings(max_examples=40)
def test_no_answer_is_longer_than_the_words_say(tokens):
    made = length_chart(Counter(map(counted_length, tokens)))
    half, most, all_of_them = (int(n.replace(",", "")) for n in re.findall(r"at most ([\d,]+)", made.words))
    assert sum(n <= half for n in tokens) >= len(tokens) / 2
    assert sum(n <= most for n in tokens) >= 0.9 * len(tokens)
    assert max(tokens) <= all_of_them


def run(start, end, fill, **changes):
    values = {"worker_id": "w", "slots": 8, "steps": 10, "completion_tokens": 90, "preemptions": 0}
    values |= dict.fromkeys(("schedule_seconds", "draft_seconds", "target_seconds", "verify_seconds"), 0.0)
    values |= {"mean_depth": None, "depth_reasons": None, "energy_joules": None}
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
