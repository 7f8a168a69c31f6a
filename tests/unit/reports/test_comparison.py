"""What becomes of a pair of jobs, JSON compared by its values."""

from __future__ import annotations

import pytest

from helix_jobs.reports.comparison import Change, Tally, compare
from helix_jobs.reports.comparison_rows import WORDS, row_json, shown_row
from helix_jobs.reports.json_diff import NOTHING, FieldChange, json_diff, read_json
from helix_jobs.storage.job_pairs import JobPair, PairedAnswer, PairedJob
from helix_jobs.storage.states import JobState


def answer(text="an answer", **changes):
    values = {"choice": 0, "tool_calls": None, "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 7}
    values |= {"total_seconds": 2.0, "draft_tokens": 8, "accepted_tokens": 6}
    return PairedAnswer(output_text=text, **{**values, **changes})


def job(*texts, state=JobState.SUCCEEDED, **changes):
    answers = tuple(answer(text, choice=place) for place, text in enumerate(texts))
    values = {"job_id": 1, "line": 3, "custom_id": "c", "error_code": None, "error_message": None}
    return PairedJob(state=state, answers=answers, **{**values, **changes})


FAILED = job(state=JobState.FAILED, error_code="deadline", error_message="too slow")


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (job("a"), job("a"), Change.SAME),
        (job("a"), job("b"), Change.CHANGED),
        (job("a"), job("a", "a"), Change.CHANGED),
        (job("a"), FAILED, Change.NEWLY_FAILED),
        (job("a"), job(state=JobState.CANCELLED), Change.NEWLY_FAILED),
        (FAILED, job("a"), Change.NEWLY_FIXED),
        (FAILED, FAILED, Change.FAILED_TWICE),
        (job("a"), job(state=JobState.QUEUED), Change.UNFINISHED),
        (job(state=JobState.RUNNING), FAILED, Change.UNFINISHED),
        (job("a"), None, Change.ONLY_BEFORE),
        (None, job("a"), Change.ONLY_AFTER),
        (job('{"a": 1, "b": [2]}'), job('{"b":[2],"a":1}'), Change.SAME),
        (job('{"a": 1}'), job('{"a": true}'), Change.CHANGED),
        (job('{"a": 1}'), job("no JSON"), Change.CHANGED),
    ],
)
def test_what_became_of_a_pair(before, after, change):
    assert compare(JobPair(before, after)).change is change


def test_calls_of_tools_are_compared_without_their_ids():
    def called(identifier, city):
        call = {"id": identifier, "function": {"name": "weather", "arguments": city}}
        return PairedJob(
            job_id=1, line=1, custom_id=None, state=JobState.SUCCEEDED, error_code=None, error_message=None,
            answers=(answer("", tool_calls=[call]),),
        )  # fmt: skip

    assert compare(JobPair(called("x", "Basel"), called("y", "Basel"))).change is Change.SAME
    other = compare(JobPair(called("x", "Basel"), called("y", "Zug")))
    assert other.change is Change.CHANGED
    assert shown_row(other).notes == ("calls of tools: weather(Basel) in the first, weather(Zug) in the second",)


def test_fields_that_differ_are_named_and_counted():
    before = job('{"name": "Ada", "works": [{"year": 1842}, {"year": 1843}], "gone": null}')
    after = job('{"name": "Ada", "works": [{"year": 1842}, {"year": 1844}], "new": "x"}')
    difference = compare(JobPair(before, after))
    assert difference.fields == (
        FieldChange("works[1].year", 1843, 1844),
        FieldChange("gone", None, NOTHING),
        FieldChange("new", NOTHING, "x"),
    )
    assert row_json(difference)["fields"][1:] == [{"path": "gone", "before": None}, {"path": "new", "after": "x"}]
    assert shown_row(difference).texts == ()
    tally = Tally()
    tally.add(difference)
    tally.add(difference)
    assert tally.fields == {"works[].year": 2, "gone": 2, "new": 2}


def test_only_objects_and_lists_are_json_and_depth_is_no_fault():
    for text in ("1", '"x"', "true", "", "{", "[" * 5000):
        assert read_json(text) is NOTHING
    deep = "[" * 200 + "]" * 200
    (change,) = json_diff(read_json(deep), read_json(deep[:-200] + "1" + deep[-200:]))
    assert change.path == "[0]" * 64


def test_sums_are_of_pairs_that_both_answered():
    tally = Tally()
    for pair in (JobPair(job("a"), job("b", "c")), JobPair(job("a"), FAILED), JobPair(None, job("a"))):
        tally.add(compare(pair))
    assert (tally.before.answers, tally.after.answers) == (1, 2)
    assert (tally.after.completion_tokens, tally.after.acceptance_rate) == (14, 0.75)


def test_another_prompt_is_told_from_another_answer():
    def asked(text, prompt):
        return job(text, request={"prompt": prompt, "seed": 1})

    assert compare(JobPair(asked("a", "x"), asked("b", "y"))).was_asked_otherwise is True
    assert compare(JobPair(asked("a", "x"), asked("b", "x"))).was_asked_otherwise is False


def test_every_kind_has_words():
    assert tuple(Change) == tuple(WORDS)


def test_texts_that_are_compared_in_part_say_so():
    same, end = "word " * 4000, "x" * 9000
    row = shown_row(compare(JobPair(job(f"{same}{end}"), job(same))))
    assert row.notes == ("of 29,000 characters the first 20,000 are compared here",)
    assert row.texts == ()
    row = shown_row(compare(JobPair(job(f"old {same}"), job(f"new {same}"))))
    assert row.notes == ("of 20,004 characters the first 20,000 are compared here",)
    assert [piece.text for piece in row.texts[0][:2]] == ["old", "new"]
