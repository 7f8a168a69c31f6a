"""The fields that choose among tokens, and truncation: what each takes, under which names, and why it is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.prompt_truncation import MAX_TRUNCATED_TOKENS, TruncatePrompt
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidFieldError
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read, read_one

CHAT = {"messages": [{"role": "user", "content": "Name a river"}]}


def forms(fields):
    """The same fields in every form of a line that has a place for them."""
    yield {"prompt": "a", **fields}
    yield {**CHAT, **fields}
    yield {"custom_id": "a", "url": "/v1/chat/completions", "body": {**CHAT, **fields}}
    yield {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a", **fields}}
    yield {"custom_id": "a", "url": "/v1/responses", "body": {"input": "a", **fields}}
    yield {"id": "s", "conversations": [{"from": "human", "value": "Name a river"}], **fields}


def fault(fields, defaults=None):
    (item,) = read(json.dumps({"prompt": "a", **fields}).encode(), defaults or SamplingParams())
    assert isinstance(item, BadLine), item
    assert not item.others
    return f"{item.field} {item.reason}; {item.remedy}"


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"logit_bias": {"5": -100, "3": 0.5}}, {"logit_bias": {"3": 0.5, "5": -100.0}}),
        ({"logit_bias": [[5, -1.0], [3.0, 2]]}, {"logit_bias": {"3": 2.0, "5": -1.0}}),
        ({"logit_bias": {}}, {}),
        ({"logit_bias": []}, {}),
        ({"min_tokens": 5.0}, {"min_tokens": 5}),
        ({"min_tokens": "5"}, {"min_tokens": 5}),
        ({"min_new_tokens": 5}, {"min_tokens": 5}),
        ({"min_new_tokens": 5, "min_tokens": 5.0}, {"min_tokens": 5}),
        ({"min_tokens": 0}, {}),
        ({"min_tokens": 300, "max_tokens": 300}, {"min_tokens": 300, "max_tokens": 300}),
        ({"min_tokens": 300, "max_tokens": -1}, {"min_tokens": 300, "max_tokens": MAX_NEW_TOKENS}),
        ({"bad_words": ["x", " y"]}, {"bad_words": ["x", " y"]}),
        ({"bad_words": "x"}, {"bad_words": ["x"]}),
        ({"bad_words": []}, {}),
        ({"allowed_token_ids": [3.0, 1]}, {"allowed_token_ids": [3, 1]}),
        ({"allowed_token_ids": None}, {}),
        ({"include_stop_str_in_output": True}, {"include_stop_str_in_output": True}),
        ({"no_stop_trim": True}, {"include_stop_str_in_output": True}),
        ({"no_stop_trim": False}, {}),
    ],
)
def test_what_is_taken_in_every_form_and_how_it_is_stored(fields, stored):
    for values in forms(fields):
        item = read_one(values)
        assert isinstance(item, NewJob), item
        assert item.request["sampling"] == stored
        assert SamplingParams.from_mapping(stored).to_dict() == stored
        assert hash(to_engine_request(1, item.request).sampling_params) == hash(SamplingParams.from_mapping(stored))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"logit_bias": 5}, "logit_bias is an integer; give at most 1024 token ids with a number from -100 to 100"),
        ({"logit_bias": {"a": 1}}, "logit_bias names a string that is no token id; give at most"),
        ({"logit_bias": {"05": 1}}, "logit_bias names a string that is no token id; give at most"),
        ({"logit_bias": {"-5": 1}}, "logit_bias names a string that is no token id; give at most"),
        ({"logit_bias": [["Hello", 1]]}, "logit_bias names a string that is no token id; give at most"),
        ({"logit_bias": [[True, 1]]}, "logit_bias names a boolean that is no token id; give at most"),
        ({"logit_bias": [[-1, 1]]}, "logit_bias names an integer that is no token id; give at most"),
        ({"logit_bias": [[5, 1], [5, 2]]}, "logit_bias names token 5 twice; keep one of them"),
        ({"logit_bias": [[5, False]]}, "logit_bias gives token 5 a boolean; give at most"),
        ({"logit_bias": {"5": "x"}}, "logit_bias gives token 5 a string; give at most"),
        ({"logit_bias": {"5": None}}, "logit_bias gives token 5 null; give at most"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias gives token 5 100.5, which is out of range; give at most"),
        ({"logit_bias": {"5": 10**400}}, "logit_bias gives token 5 1000"),
        ({"logit_bias": [5]}, "logit_bias holds an integer, no pair of token id and number; give at most"),
        ({"logit_bias": [[5]]}, "logit_bias holds a list, no pair of token id and number; give at most"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias has 1025 entries; give at most"),
        ({"min_tokens": -1}, "min_tokens -1 is out of range; give an integer from 0 to 131072"),
        ({"min_tokens": True}, "min_tokens is a boolean; give an integer from 0 to 131072"),
        ({"min_tokens": 257}, "min_tokens 257 is more than max_tokens, which is 256; lower it, or raise max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens 9 is more than max_tokens, which is 8; lower it, or raise"),
        ({"min_new_tokens": 9, "max_tokens": 8}, "min_new_tokens 9 is more than max_tokens, which is 8; lower it"),
        ({"min_new_tokens": -2}, "min_new_tokens -2 is out of range; give an integer from 0 to 131072"),
        ({"min_new_tokens": 4, "min_tokens": 5}, "min_tokens differs from min_new_tokens; give one of the two"),
        ({"bad_words": 5}, "bad_words is an integer; give a string, or at most 256 strings of 1 to 256 characters"),
        ({"bad_words": [""]}, "bad_words holds a string of 0 characters; give a string, or at most 256"),
        ({"bad_words": ["x", " \n"]}, "bad_words holds a string of blanks alone; give words"),
        ({"bad_words": ["x" * 257]}, "bad_words holds a string of 257 characters; give"),
        ({"bad_words": [5]}, "bad_words holds an integer; give"),
        ({"bad_words": ["x"] * 257}, "bad_words has 257 strings; give"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty; list the tokens that may be chosen"),
        ({"allowed_token_ids": 5}, "allowed_token_ids is an integer; give a list of at most 16384 token ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids holds an integer that is no token id; give a list"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids holds a string that is no token id; give a list"),
        ({"allowed_token_ids": list(range(16_385))}, "allowed_token_ids has 16385 ids; give a list of at most"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output is an integer; give true or false"),
        ({"no_stop_trim": "yes"}, "no_stop_trim is a string; give true or false"),
        ({"no_stop_trim": True, "include_stop_str_in_output": False}, "include_stop_str_in_output differs from"),
        (
            {"truncate_prompt_tokens": 0},
            "truncate_prompt_tokens 0 is out of range; give an integer from 1 to 1048576, or -1 for as many as fit",
        ),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens -2 is out of range; give"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens is a boolean; give an integer from 1 to 1048576,"),
        ({"truncate_prompt_tokens": 2**30}, "truncate_prompt_tokens 1073741824 is out of range; give"),
        ({"truncate_prompt_tokens": {"keep": "end"}}, "truncate_prompt_tokens is an object; give an integer from 1"),
        ({"truncate_prompt": 5}, 'truncate_prompt is an integer; give an object such as {"keep": "start_and_end"'),
        ({"truncate_prompt": {"keep": "middle"}}, "truncate_prompt.keep is another text; give end or start_and_end"),
        ({"truncate_prompt": {"keep": 5}}, "truncate_prompt.keep is an integer; give end or start_and_end"),
        ({"truncate_prompt": {"keep": []}}, "truncate_prompt.keep is a list; give end or start_and_end"),
        ({"truncate_prompt": {"side": 5}}, "truncate_prompt holds a field that is neither keep nor tokens; give an"),
        ({"truncate_prompt": {"tokens": 0}}, "truncate_prompt.tokens 0 is out of range; give an integer from 1 to"),
        ({"truncate_prompt": {}, "truncate_prompt_tokens": 5}, "truncate_prompt stands beside truncate_prompt_tokens"),
        ({"n_keep": 5}, "n_keep asks for something Helix does not do; remove it"),
        ({"truncation_side": "right"}, "truncation_side asks for something Helix does not do; remove it"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_with_its_remedy(fields, told):
    assert fault(fields).startswith(told)


def test_every_fault_stands_under_its_path_in_a_body():
    fields = {"min_tokens": 9, "max_tokens": 8, "truncate_prompt": {"keep": "x"}}
    item = read_one({"custom_id": "a", "url": "/v1/chat/completions", "body": {**CHAT, **fields}})
    assert [fault.field for fault in item.faults] == ["body.min_tokens", "body.truncate_prompt.keep"]
    # Alone, 300 would be no fault of the line: max_tokens is large enough, and it is the temperature that is wrong.
    item = read_one({"prompt": "a", "min_tokens": 300, "max_tokens": 400, "temperature": -1})
    assert [fault.field for fault in item.faults] == ["temperature"]


def test_a_flag_and_a_line_that_contradict_each_other_are_told():
    told = fault({"max_tokens": 8}, SamplingParams(min_tokens=9))
    assert told.startswith("min_tokens 9 is more than max_tokens, which is 8")


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"truncate_prompt_tokens": -1}, {"keep": "end"}),
        ({"truncate_prompt_tokens": 100.0}, {"keep": "end", "tokens": 100}),
        ({"truncate_prompt_tokens": MAX_TRUNCATED_TOKENS}, {"keep": "end", "tokens": MAX_TRUNCATED_TOKENS}),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, {"keep": "end", "tokens": 5}),
        ({"truncate_prompt": {}}, {"keep": "end"}),
        ({"truncate_prompt": {"keep": None, "tokens": "7"}}, {"keep": "end", "tokens": 7}),
        ({"truncate_prompt": {"keep": "start_and_end"}}, {"keep": "start_and_end"}),
        ({"truncate_prompt": {"keep": "start_and_end", "tokens": 9}, "truncate_prompt_tokens": None},
         {"keep": "start_and_end", "tokens": 9}),
    ],
)  # fmt: skip
def test_truncation_is_stored_and_read_back(fields, stored):
    for values in forms(fields):
        request = read_one(values).request
        assert request["truncate_prompt"] == stored
        assert to_engine_request(1, request).truncate_prompt == TruncatePrompt(**stored)
        assert TruncatePrompt.from_mapping(stored).to_dict() == stored


def test_without_truncation_nothing_is_stored():
    request = read_one({"prompt": "a", "truncate_prompt_tokens": None, "truncate_prompt": None}).request
    assert "truncate_prompt" not in request
    assert to_engine_request(1, request).truncate_prompt is None


@pytest.mark.parametrize("stored", [5, {"keep": "x"}, {"tokens": 0}, {"tokens": 1.5}, []])
def test_a_stored_truncation_is_checked_again(stored):
    request = {**read_one({"prompt": "a"}).request, "truncate_prompt": stored}
    with pytest.raises(InvalidFieldError, match="truncate_prompt"):
        to_engine_request(1, request)


# What truncation keeps


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    most=st.integers(1, 35),
    keep=st.sampled_from(["end", "start_and_end"]),
    bos=st.none() | st.integers(0, 5),
)
def test_truncation_keeps_the_end_or_both_ends_and_the_bos_token(ids, most, keep, bos):
    kept = TruncatePrompt(keep=keep).kept(ids, most, bos)
    assert len(kept) == min(len(ids), most)
    if len(ids) <= most:
        assert kept == tuple(ids)
        return
    first = most // 2 if keep == "start_and_end" else 0
    if ids[0] == bos and most > 1:
        first = max(first, 1)
    assert kept[:first] == tuple(ids[:first])
    assert kept[first:] == tuple(ids[len(ids) - (most - first) :])


# What is stored comes back


TOKEN_IDS = st.integers(0, 300_000)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        SamplingParams,
        max_tokens=st.integers(50, 60),
        min_tokens=st.integers(0, 50),
        logit_bias=st.dictionaries(TOKEN_IDS, st.floats(-100, 100) | st.integers(-100, 100), max_size=9),
        bad_words=st.lists(st.text(min_size=1, max_size=9).filter(lambda text: not text.isspace()), max_size=5),
        allowed_token_ids=st.none() | st.lists(TOKEN_IDS, min_size=1, max_size=9),
        include_stop_str_in_output=st.booleans(),
    )
)
def test_any_fields_come_back_from_their_stored_form(params):
    stored = json.loads(json.dumps(params.to_dict()))
    assert stored == params.to_dict()
    again = SamplingParams.from_mapping(stored)
    assert again == params
    assert hash(again) == hash(params)
    assert SamplingParams.from_mapping({}, params) == params
