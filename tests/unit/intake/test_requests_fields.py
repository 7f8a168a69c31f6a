"""Fields of a line: all faults at once, what other programs write, and remedies that mean what was meant."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS
from helix_jobs.errors import BadLine
from helix_jobs.intake.known_fields import BODY_FIELDS
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

CHAT = {"messages": [{"role": "user", "content": "Name a river"}]}


def body(**fields):
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", **CHAT, **fields}}


def faults(values: dict) -> list[str]:
    item = read_one(values)
    assert isinstance(item, BadLine), item
    assert all(fault.line == 1 and fault.reason and fault.remedy and not fault.others for fault in item.faults)
    return [fault.field for fault in item.faults]


def test_every_fault_of_a_line_is_told_at_once():
    values = {**body(max_token=1, n=0, top_p=7, temperature="x", metadata=[]), "priority": 12, "custom_id": "", "zz": 1}
    assert faults(values) == [
        "zz",
        "body.max_token",
        "body.n",
        "body.top_p",
        "body.temperature",
        "body.metadata",
        "custom_id",
        "priority",
    ]
    messages = [{"role": "function", "content": "a"}, {"role": "user", "content": 5}, {"role": "user", "content": "c"}]
    assert faults({"messages": messages, "max_tokens": 0}) == ["messages[0].role", "messages[1].content", "max_tokens"]


def test_a_misspelt_question_is_not_missing_as_well():
    assert faults({"promt": "a"}) == ["promt"]
    assert faults({"custom_id": "a"}) == ["prompt"]


def test_more_faults_than_anybody_reads_are_cut():
    assert len(faults({f"zz{number}": 1 for number in range(50_000)})) == 20


@pytest.mark.parametrize(
    "nothing",
    [
        {"min_tokens": 0, "skip_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0, "top_k": -1},
        {"length_penalty": 1, "truncate_prompt_tokens": None, "guided_json": None, "add_generation_prompt": True},
        {"spaces_between_special_tokens": True, "include_stop_str_in_output": False, "logits_processors": None},
        {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": None, "top_logprobs": 0},
        {"max_tokens": None, "stream": False, "user": "u", "metadata": {"k": "v"}, "store": False, "echo": False},
        {"regex": None, "ebnf": None, "json_schema": None, "no_stop_trim": False, "min_new_tokens": 0},
        {"typical_p": 1.0, "tfs_z": 1, "mirostat": 0, "cache_prompt": True, "n_probs": 0, "grammar": "", "n_keep": 0},
        {"num_beams": 1, "early_stopping": False, "num_return_sequences": 1},
    ],
)
def test_what_asks_for_nothing_is_taken_in_every_form(nothing):
    for values in (body(**nothing), {**CHAT, **nothing}, {"prompt": "a", **nothing}):
        item = read_one(values)
        assert isinstance(item, NewJob), item
        assert item.request["sampling"] == {}


@pytest.mark.parametrize(
    "something",
    [
        {"truncation_side": "right"},
        {"skip_special_tokens": False},
        {"use_beam_search": True},
        {"length_penalty": 1.2},
        {"typical_p": 0.9},
        {"structural_tag": {}},
        {"mirostat": 2},
        {"min_tokens": False},
        {"num_beams": 4},
    ],
)
def test_the_same_fields_are_refused_where_they_ask_for_something(something):
    (name,) = something
    assert faults(body(**something)) == [f"body.{name}"]
    assert faults({"prompt": "a", **something}) == [name]


def test_a_model_beside_the_messages_is_stored_as_in_a_body():
    assert read_one({**CHAT, "model": "m"}).request["model"] == "m"


def test_a_priority_in_the_body_is_told_where_it_belongs():
    assert isinstance(read_one(body(priority=0)), NewJob)
    item = read_one(body(priority=3))
    assert (item.field, item.remedy) == ("body.priority", "move it beside body, as 0 to 9, where higher runs first")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_token", "max_tokens"),
        ("min_token", "min_tokens"),
        ("bad_word", "bad_words"),
        ("truncate_prompt_token", "truncate_prompt_tokens"),
        ("maxTokens", "max_tokens"),
        ("temprature", "temperature"),
        ("top-p", "top_p"),
        ("topK", "top_k"),
        ("mesages", "messages"),
        ("custom-id", "custom_id"),
        ("repetition_penality", "repetition_penalty"),
        ("guided_jsn", "guided_json"),
        ("guided_choices", "guided_choice"),
        ("reasoning_efort", "reasoning_effort"),
    ],
)
def test_a_typing_error_is_answered_with_the_field_that_was_meant(name, meant):
    assert read_one({"prompt": "a", name: 1}).remedy == f"did you mean {meant}?"


@pytest.mark.parametrize("name", [*sorted(BODY_FIELDS - SAMPLING_FIELDS), "min_length", "word", "penalty", "tokens"])
def test_no_remedy_names_a_field_of_another_meaning(name):
    item = read_one({"prompt": "a", name: {"strange": [1]}})
    if isinstance(item, BadLine):
        assert "did you mean" not in item.remedy


@pytest.mark.parametrize("name", ["requests", "prompts"])
def test_requests_wrapped_in_an_object_are_told_how_they_become_lines(name):
    assert read_one({name: [{"prompt": "a"}]}).remedy.endswith(f"jq -c '.{name}[]'")


@pytest.mark.parametrize(("name", "meant"), [("tool", "tools"), ("mesages", "messages")])
def test_a_misspelt_field_that_holds_objects_is_not_taken_for_wrapped_requests(name, meant):
    assert read_one({"prompt": "a", name: [{"role": "user"}]}).remedy == f"did you mean {meant}?"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("reasoning", {"effort": "low"}, ["reasoning_effort", "max_reasoning_tokens"]),
        ("thinking", {"type": "enabled", "budget_tokens": 2000}, ["enable_thinking", "max_reasoning_tokens"]),
    ],
)
def test_other_programs_fields_of_thinking_are_told_ours(name, value, named):
    remedy = read_one({"messages": [{"role": "user", "content": "a"}], name: value}).remedy
    assert all(field in remedy for field in named)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"max_tokens": 64.0}, {"max_tokens": 64}),
        ({"max_tokens": "128.0"}, {"max_tokens": 128}),
        ({"max_tokens": -1}, {"max_tokens": MAX_NEW_TOKENS}),
        ({"max_completion_tokens": 64.0, "max_tokens": "64"}, {"max_tokens": 64}),
        ({"max_tokens": None, "top_k": 20.0}, {"top_k": 20}),
        ({"top_k": -1}, {}),
        ({"temperature": "0.7"}, {"temperature": 0.7}),
        ({"top_p": "5e-1"}, {"top_p": 0.5}),
        ({"seed": 7.0}, {"seed": 7}),
        ({"stop_token_ids": [2.0, 3]}, {"stop_token_ids": [2, 3]}),
        ({"stop": "0.7"}, {"stop": ["0.7"]}),
    ],
)
def test_numbers_are_taken_as_tables_and_converters_write_them(given, stored):
    for values in (body(**given), {"prompt": "a", **given}):
        sampling = read_one(values).request["sampling"]
        assert json.dumps(sampling) == json.dumps(stored)


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 64.5},
        {"max_tokens": "many"},
        {"max_tokens": ""},
        {"max_tokens": "0x40"},
        {"max_tokens": "٦٤"},
        {"max_tokens": "1" * 30},
        {"max_tokens": -2},
        {"seed": 1e300},
        {"seed": 2.0**60},
        {"top_k": True},
        {"temperature": "hot"},
        {"temperature": "NaN"},
        {"ignore_eos": "true"},
    ],
)
def test_what_is_no_such_number_is_refused(given):
    (name,) = given
    assert faults({"prompt": "a", **given}) == [name]


def test_an_integer_is_taken_as_an_id_and_a_whole_priority_as_one():
    item = read_one({"prompt": "a", "custom_id": 17, "priority": 3.0})
    assert (item.custom_id, item.priority) == ("17", 3)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(width=16)
    | st.sampled_from(["", "a", "0.7", "-1", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "role", "text"]), inner),
    max_leaves=4,
)


@pytest.mark.thorough
@given(st.dictionaries(st.sampled_from(sorted(BODY_FIELDS)) | st.text(max_size=6), values, max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_values_of_known_fields_are_taken_or_refused_in_sentences(fields, wrapped):
    item = read_one(json.dumps(body(**fields) if wrapped else fields).encode())
    if isinstance(item, BadLine):
        for fault in item.faults:
            assert fault.field
            assert str(fault).isprintable()
            assert fault.reason
            assert fault.remedy
