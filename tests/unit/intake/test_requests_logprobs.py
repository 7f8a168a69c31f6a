"""Lines that ask for log probabilities, echoes and the scores of choices, in every spelling, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import BadLine
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read, read_one

CHAT = {"messages": [{"role": "user", "content": "Name a river"}]}


def forms(**fields: Any) -> list[dict[str, Any]]:
    """The same fields in each form that takes them, of a prompt and of a chat."""
    completion = {"url": "/v1/completions", "body": {"prompt": "a", **fields}}
    chat = {"url": "/v1/chat/completions", "body": {**CHAT, **fields}}
    return [{"prompt": "a", **fields}, {**CHAT, **fields}, completion, chat]


def sampling_of(values: dict[str, Any]) -> dict[str, Any]:
    item = read_one(values)
    assert isinstance(item, NewJob), item
    return item.request["sampling"]


def faults(values: dict[str, Any]) -> list[str]:
    item = read_one(values)
    assert isinstance(item, BadLine), item
    assert all(fault.reason and fault.remedy for fault in item.faults)
    return [fault.field.removeprefix("body.") for fault in item.faults]


def test_the_remedy_names_every_form_of_logprobs():
    item = read_one({"prompt": "a", "logprobs": "yes"})
    assert item.remedy == "give true or false, or an integer from 0 to 20"


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"logprobs": True, "top_logprobs": None}, {"logprobs": 0}),
        ({"logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"logprobs": "3"}, {"logprobs": 3}),
        ({"logprobs": 4.0, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {}),
        ({"logprobs": None, "top_logprobs": 0}, {}),
        ({"n_probs": 7}, {"logprobs": 7}),
        ({"n_probs": 0}, {}),
        ({"n_probs": 0, "logprobs": True}, {"logprobs": 0}),
        ({"prompt_logprobs": 2}, {"prompt_logprobs": 2}),
        ({"prompt_logprobs": "0"}, {"prompt_logprobs": 0}),
        ({"echo": False}, {}),
    ],
)
def test_every_spelling_is_taken_in_every_form(fields: dict[str, Any], stored: dict[str, Any]) -> None:
    for values in forms(**fields):
        assert sampling_of(values) == stored


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"logprobs": 21}, ["logprobs"]),
        ({"logprobs": -1}, ["logprobs"]),
        ({"logprobs": "many"}, ["logprobs"]),
        ({"logprobs": []}, ["logprobs"]),
        ({"top_logprobs": 3}, ["top_logprobs"]),
        ({"logprobs": False, "top_logprobs": 3}, ["top_logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, ["top_logprobs"]),
        ({"logprobs": True, "top_logprobs": True}, ["top_logprobs"]),
        ({"logprobs": 4, "top_logprobs": 5}, ["top_logprobs"]),
        ({"logprobs": 4, "n_probs": 5}, ["n_probs"]),
        ({"n_probs": 21}, ["n_probs"]),
        ({"prompt_logprobs": 21}, ["prompt_logprobs"]),
        ({"prompt_logprobs": -1}, ["prompt_logprobs"]),
        ({"prompt_logprobs": True}, ["prompt_logprobs"]),
        ({"echo": 1}, ["echo"]),
        ({"logprobs": 21, "top_p": 7, "prompt_logprobs": 21}, ["logprobs", "top_p", "prompt_logprobs"]),
    ],
)
def test_what_is_no_such_number_is_refused_in_every_form(fields: dict[str, Any], found: list[str]) -> None:
    for values in forms(**fields):
        assert sorted(faults(values)) == sorted(found)


def test_foreign_forms_ask_for_them_as_well() -> None:
    contents = [{"role": "user", "parts": [{"text": "Hi"}]}]
    config = {"responseLogprobs": True, "logprobs": 3}
    assert sampling_of({"key": "a", "request": {"contents": contents, "generationConfig": config}}) == {"logprobs": 3}
    body = {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 4}
    assert sampling_of({"custom_id": "a", "url": "/v1/responses", "body": body}) == {"logprobs": 4}
    assert faults({"url": "/v1/responses", "body": {**body, "include": ["file_search_call.results"]}})


# Echo


def test_loglikelihood_requests_of_lm_evaluation_harness_are_taken() -> None:
    """Its local-completions model sends these, with token ids or with a text."""
    common = {"model": "m", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    for prompt, key, stored in (
        ([[5, 6, 7]], "prompt_token_ids", [5, 6, 7]),
        ([5, 6, 7], "prompt_token_ids", [5, 6, 7]),
        ("The sky is blue", "prompt", "The sky is blue"),
        (["The sky is blue"], "prompt", "The sky is blue"),
    ):
        item = read_one({"url": "/v1/completions", "body": {"prompt": prompt, **common}})
        assert isinstance(item, NewJob), item
        assert item.request[key] == stored
        assert item.request["sampling"] == {"max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
        asked = to_engine_request(1, item.request)
        assert asked.prompt_token_ids == (None if key == "prompt" else (5, 6, 7))
        assert asked.sampling_params.prompt_alternatives == 1


def test_no_new_token_is_taken_beside_echo_and_logprobs_alone() -> None:
    line = {"prompt": "a", "max_tokens": 0}
    assert sampling_of({**line, "echo": True, "logprobs": 1}) == {"max_tokens": 0, "echo": True, "logprobs": 1}
    for fields in ({}, {"echo": True}, {"logprobs": 1}, {"prompt_logprobs": 1}, {"echo": False, "logprobs": 1}):
        assert faults({**line, **fields}) == ["max_tokens"]
    assert faults({**line, "echo": True, "logprobs": 1, "top_p": 7}) == ["top_p"]
    assert faults({"prompt": "a", "max_tokens": -2, "echo": True, "logprobs": 1}) == ["max_tokens"]


def test_a_chat_is_not_echoed() -> None:
    assert faults({**CHAT, "echo": True}) == ["echo"]
    assert faults({"url": "/v1/chat/completions", "body": {**CHAT, "echo": True}}) == ["echo"]


@pytest.mark.parametrize(
    "prompt", [[], [[]], [1, -1], [1, 2**31], [1, True], [1, 2.0], ["a", "b"], [[1], [2]], [[[1]]], [None], [1, "a"]]
)
def test_a_list_that_is_no_one_prompt_is_refused(prompt: Any) -> None:
    assert faults({"prompt": prompt}) == ["prompt"]


def test_token_ids_without_logprobs_have_no_text_to_echo() -> None:
    assert faults({"prompt": [1, 2], "echo": True}) == ["echo"]
    assert sampling_of({"prompt": [1, 2], "echo": True, "logprobs": 0}) == {"echo": True, "logprobs": 0}


# Choices


def test_choices_are_stored_in_every_form() -> None:
    for values in forms(choices=["yes", "no"]):
        item = read_one(values)
        assert isinstance(item, NewJob), item
        assert item.request["score_choices"] == ["yes", "no"]
        assert "score_by" not in item.request
        asked = to_engine_request(1, item.request)
        assert asked.score_choices == ScoreChoices(options=("yes", "no"))
    item = read_one({"prompt": "a", "choices": ["yes"], "score_by": "mean", "seed": 5})
    assert isinstance(item, NewJob)
    assert item.request["sampling"] == {"seed": 5}
    assert to_engine_request(1, item.request).score_choices == ScoreChoices(options=("yes",), by="mean")


def test_the_batchs_defaults_do_not_apply_to_choices() -> None:
    (item,) = read(b'{"prompt": "a", "choices": ["yes", "no"]}', SamplingParams(temperature=0.7, max_tokens=9))
    assert item.request["sampling"] == {}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"choices": []}, "choices"),
        ({"choices": "yes"}, "choices"),
        ({"choices": {"a": 1}}, "choices"),
        ({"choices": ["yes", 5]}, "choices[1]"),
        ({"choices": ["yes", ""]}, "choices[1]"),
        ({"choices": ["yes", "no", "yes"]}, "choices"),
        ({"choices": [str(number) for number in range(257)]}, "choices"),
        ({"choices": ["x" * 4097]}, "choices[0]"),
        ({"choices": ["yes"], "score_by": "best"}, "score_by"),
        ({"choices": ["yes"], "score_by": []}, "score_by"),
        ({"score_by": "mean"}, "score_by"),
    ],
)
def test_wrong_choices_are_refused_in_every_form(fields: dict[str, Any], field: str) -> None:
    for values in forms(**fields):
        assert faults(values) == [field]


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"stop": ["x"]},
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"repetition_penalty": 1.1},
        {"ignore_eos": True},
        {"logprobs": 3},
        {"n_probs": 3},
        {"prompt_logprobs": 0},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a+"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"max_reasoning_tokens": 0},
        {"thinking_token_budget": 0},
    ],
)
def test_what_says_how_text_is_made_has_no_meaning_beside_choices(field: dict[str, Any]) -> None:
    (name,) = field
    assert faults({"prompt": "a", "choices": ["yes", "no"], **field}) == [name]


def test_what_asks_for_nothing_may_stand_beside_choices() -> None:
    nothing = {"temperature": 0, "top_p": 1, "top_k": -1, "stop": None, "logprobs": False, "n": 1, "echo": False}
    assert sampling_of({"prompt": "a", "choices": ["yes"], **nothing}) == {}


def test_no_rule_of_acceptance_holds_for_choices() -> None:
    line = {"prompt": "a", "choices": ["yes", "no"]}
    assert faults({**line, "accept": {"min_chars": 2}}) == ["accept"]
    reader = LineReader(SamplingParams(), accept=AcceptanceRule(min_chars=2))
    scored, plain = reader.read_mappings([line, {"prompt": "a"}])
    assert "accept" not in scored.request
    assert plain.request["accept"] == {"min_chars": 2}


def test_choices_continue_a_text() -> None:
    assert faults({"prompt": [1, 2], "choices": ["yes"]}) == ["prompt"]


@pytest.mark.parametrize("choices", ["yes", [], [1], ["a", "a"], {}])
def test_stored_choices_are_checked_again(choices: Any) -> None:
    stored = {"prompt": "a", "seed": 1, "sampling": {}, "score_choices": choices}
    with pytest.raises(Exception, match="choices"):
        to_engine_request(1, stored)
