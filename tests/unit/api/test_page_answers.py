"""What the page makes of stored answers: excerpts, prompts, probabilities, and addresses of lists."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.api.page.answer_logprobs import shown_tokens
from helix_jobs.api.page.answer_prompt import asked_of, asked_text
from helix_jobs.api.page.answer_rows import answer_row, prompt_of
from helix_jobs.api.page.answer_wish import AnswerWish
from helix_jobs.api.page.texts import cut, excerpt, pretty_json, shown
from helix_jobs.errors import InvalidFieldError
from helix_jobs.storage.answer_records import AnswerHead, AnswerOrder
from helix_jobs.storage.states import JobState
from helix_jobs.token_logprobs import TokenLogprobs
from tests.answer_scene import ALL_HOSTILE, logprobs_of

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
FLAG = "\U0001f1e9\U0001f1ea"


def controls(text):
    """Characters that control what shows them; joiners belong to emoji and to some scripts."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\u200c", "\u200d"}


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "abc"),
        ("abe\u0301", 3, "ab"),
        (f"ab{FAMILY}", 4, "ab"),
        (f"ab{FAMILY}x", 7, f"ab{FAMILY}"),
        (f"a{FLAG}{FLAG}", 4, f"a{FLAG}"),
        ("a\r\nb", 2, "a"),
        ("e" + "\u0301" * 50, 10, "e" + "\u0301" * 9),
    ],
)
def test_a_text_is_cut_between_whole_characters(text, limit, expected):
    assert cut(text, limit) == expected


@given(st.text(max_size=80), st.integers(1, 40))
def test_an_excerpt_is_one_line_of_plain_characters(text, limit):
    assert not controls(excerpt(text, limit))
    assert shown(text, limit).is_cut == (len(text) > limit)
    assert cut(text, limit) == text[: len(cut(text, limit))]


def test_line_ends_are_seen_and_nothing_turns_the_line_around():
    assert excerpt("one\r\ntwo\n\nthree", 50) == "one ↵ two ↵  ↵ three"
    assert excerpt("one two", 3) == "one…"
    assert excerpt(f"{FAMILY} three", 50) == f"{FAMILY} three"
    assert not controls(excerpt(ALL_HOSTILE, 5000))
    assert controls(shown(ALL_HOSTILE).text) <= {"\n"}


def test_json_is_laid_out_only_where_nothing_is_lost():
    assert pretty_json('{"a":[1,"ü"]}') == '{\n  "a": [\n    1,\n    "ü"\n  ]\n}'
    for text in ('{"a":1,"a":2}', "[1e999]", "[NaN]", '{"a":', "12", "yes", "[" * 100_000, '["' + "1" * 5000 + '"', ""):
        assert pretty_json(text) is None, text[:20]


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ('{"prompt":"a\\nb"}', "a\nb"),
        ('{"messages":[{"role":"user","content":"x"},{"role":"user","content":"y"}]}', "y"),
        ('{"messages":[{"role":"user","content":"x"},{"role":"tool","content":"{}"}]}', "x"),
        ('{"messages":[{"role":"system","content":"s"}]}', "s"),
        ('{"messages":[{"role":"user","content":[{"type":"text","text":"y"}]}]}', '[{"type": "text", "text": "y"}]'),
        ('{"prompt_token_ids":[1,2,3]}', "3 token ids"),
        ('{"messages":[]}', ""),
        ("{}", ""),
        ("[1]", "[1]"),
        ("no json", "no json"),
        ('{"prompt":"' + "w" * 20_000 + '"}', "w" * 16_373 + "…"),
        ('{"messages":[{"role":"user","content":"' + "\\u00fc" * 9_000 + '"}]}', "ü" * 2_724 + "…"),
    ],
)
def test_a_row_shows_what_was_asked(request_text, expected):
    assert prompt_of(request_text) == expected


def test_a_row_of_a_job_that_waits_and_of_one_that_cannot_be_read():
    waiting = answer_row(AnswerHead(job_id=1, line=3, state=JobState.QUEUED, request='{"prompt":"p"}'))
    assert (waiting.prompt, waiting.answer, waiting.kind) == ("p", "waits", "nothing")
    unreadable = answer_row(AnswerHead(job_id=1, line=3, state=None))
    assert unreadable.state == "unreadable"
    assert "helix db check" in unreadable.answer


def test_a_long_conversation_shows_its_beginning_and_its_end():
    messages = [{"role": "user", "content": str(number)} for number in range(500)]
    asked = asked_of({"messages": messages})
    assert (len(asked.first_turns), asked.left_out, len(asked.last_turns)) == (20, 400, 80)
    assert (asked.first_turns[-1].text.text, asked.last_turns[0].text.text) == ("19", "420")
    assert json.loads(asked_text({"messages": messages})) == messages
    assert asked_of({"messages": messages[:100]}).left_out == 0


@pytest.mark.parametrize(
    "request_values",
    [
        {},
        {"messages": "x"},
        {"messages": [1, None, [], {"content": 5, "tool_calls": [7, {"function": 8}]}]},
        {"prompt": "p", "tools": [1, {"function": 2}], "sampling": 3, "metadata": 4},
        {"prompt": None, "tools": "x", "constraint": {"value": 5}},
    ],
)
def test_a_request_that_a_person_changed_is_shown_all_the_same(request_values):
    asked = asked_of(request_values)
    assert all(isinstance(turn.text.text, str) for turn in asked.turns)
    assert isinstance(asked_text(request_values), str)


def test_tokens_are_graded_by_their_probability():
    found = TokenLogprobs.from_bytes(logprobs_of(("a\n", 0.95), (" b", 0.6), ("c", 0.2), ("d", 0.01), ("e", 0.0001)))
    tokens = shown_tokens(found).tokens
    assert [token.grade for token in tokens] == ["sure", "likely", "open", "surprising", "surprising"]
    assert [token.name for token in tokens[:2]] == ["a↵", "␣b"]
    assert (tokens[2].percent, tokens[4].percent) == ("20.0 %", "< 0.1 %")
    assert tokens[2].others[0] == ("other", "80.0 %")


def test_an_address_says_which_page():
    wish = AnswerWish.of({"q": " Zürich ", "show": "deadline", "mark": "thought", "after": "50", "other": "x"})
    query = wish.query()
    assert (query.which.text, query.which.error_code, query.after) == ("Zürich", "deadline", "50")
    assert wish.parameters(after="9") == "?q=Z%C3%BCrich&show=deadline&mark=thought&after=9"
    assert AnswerWish.of({"line": "9"}).query().after == "8"
    assert AnswerWish.of({"line": "9", "order": "newest"}).query().after is None
    assert AnswerWish.of({"order": "newest"}).query().order is AnswerOrder.NEWEST
    assert AnswerWish.of({"show": "length"}).query().which.finish_reason == "length"
    assert AnswerWish.of({}).is_all


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"show": "<script>"}, "show"),
        ({"mark": "x"}, "mark"),
        ({"order": "random"}, "order"),
        ({"line": "-1"}, "line"),
        ({"line": "٣"}, "line"),
        ({"q": "q" * 501}, "q"),
        ({"q": "a\0b"}, "q"),
        ({"part": "x"}, "part"),
    ],
)
def test_an_address_that_says_nonsense_is_refused(values, field):
    with pytest.raises(InvalidFieldError) as caught:
        AnswerWish.of(values)
    assert caught.value.field == field
