"""The accept field of a line, in every line form, beside the batch's own rule."""

from __future__ import annotations

import io
import json

import pytest

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.acceptance.stored import stored_rule
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidFieldError
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob

CHAT = [{"role": "user", "content": "Name a river"}]
FORMS = {
    "prompt": {"prompt": "a"},
    "messages": {"messages": CHAT},
    "openai": {"custom_id": "o", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": CHAT}},
    "responses": {"custom_id": "r", "url": "/v1/responses", "body": {"input": CHAT}},
    "anthropic": {"custom_id": "a", "params": {"messages": CHAT, "max_tokens": 9}},
    "gemini": {"key": "g", "request": {"contents": [{"role": "user", "parts": [{"text": "Name a river"}]}]}},
    "sharegpt": {"id": "s", "conversations": [{"from": "human", "value": "Name a river"}]},
}


def read(line, accept=None):
    (item,) = LineReader(SamplingParams(), accept=accept).read(io.BytesIO(json.dumps(line).encode()))
    return item


def rule_of(line, accept=None):
    job = read(line, accept)
    assert isinstance(job, NewJob), job
    return stored_rule(job.request)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_takes_it_beside_the_request(form):
    assert rule_of({**FORMS[form], "accept": {"not_cut": True}}) == AcceptanceRule(not_cut=True)
    assert rule_of(FORMS[form]) is None
    refused = read({**FORMS[form], "accept": {"not_cut": 5}})
    assert isinstance(refused, BadLine)
    assert refused.field == "accept.not_cut"


def test_in_a_body_it_is_told_where_it_belongs():
    line = {**FORMS["openai"], "body": {"messages": CHAT, "accept": {"not_cut": True}}}
    assert (read(line).field, read(line).remedy) == ("body.accept", "move it beside body")


def test_its_faults_are_told_with_those_of_the_rest():
    item = read({"prompt": 5, "temperature": "hot", "accept": {"min_chars": 0, "regex": 7}})
    assert {fault.field for fault in item.faults} == {"prompt", "temperature", "accept.min_chars", "accept.regex"}


def test_a_line_adds_to_the_batchs_rule_or_does_without():
    batch = AcceptanceRule(not_cut=True, max_tries=5)
    assert rule_of({"prompt": "a"}, batch) == batch
    assert rule_of({"prompt": "a", "accept": None}, batch) == batch
    assert rule_of({"prompt": "a", "accept": False}, batch) is None
    assert rule_of({"prompt": "a", "accept": {"min_chars": 3}}, batch) == AcceptanceRule(
        not_cut=True, min_chars=3, max_tries=5
    )
    item = read({"prompt": "a", "accept": {"not_cut": False}}, batch)
    assert (item.field, item.reason) == ("accept", "states no condition")


@pytest.mark.parametrize(
    ("accept", "more", "field", "reason"),
    [
        (True, {}, "accept", "is no object"),
        ({"regex": "(?=a)"}, {}, "accept.regex", "is no regular expression that can be used"),
        ({"schema": {"type": "x"}}, {}, "accept.schema", "is no JSON Schema that can be used (at type)"),
        ({"schema": True}, {}, "accept.schema", "is true, and the request states no schema"),
        ({"min_tokens": 257}, {}, "accept.min_tokens", "257 is more than the request's max_tokens, 256"),
        ({"min_tokens": 9}, {"max_tokens": 8}, "accept.min_tokens", "9 is more than the request's max_tokens, 8"),
    ],
)
def test_what_no_answer_can_meet_is_refused(accept, more, field, reason):
    for item in (read({"prompt": "a", **more, "accept": accept}), _under_a_rule_of_the_batch(accept, more)):
        assert (item.field, item.reason) == (field, reason)
        assert item.remedy


def _under_a_rule_of_the_batch(accept, more):
    """The same rule as the batch's own: it is refused with it, or with the line it does not fit."""
    try:
        return read({"prompt": "a", **more}, AcceptanceRule.from_mapping(accept))
    except InvalidFieldError as error:
        return error


def test_a_line_that_does_without_needs_no_schema():
    assert rule_of({"prompt": "a", "accept": False}, AcceptanceRule(schema=True)) is None


def test_a_prompt_that_is_only_scored_has_no_rule_and_no_form():
    """Every try would give the same numbers. What holds for the whole batch does not hold for such a line."""
    line = {"prompt": "a", "echo": True, "logprobs": 0, "max_tokens": 0}
    batch = AcceptanceRule(not_cut=True)
    assert rule_of(line, batch) is None
    assert rule_of({**line, "accept": False}, batch) is None
    refused = read({**line, "accept": {"not_cut": True}})
    assert (refused.field, refused.reason) == (
        "accept",
        "has no meaning beside max_tokens 0: every try gives the same scores",
    )
    form = Constraint("json_object")
    (item,) = LineReader(SamplingParams(), constraint=form).read(io.BytesIO(json.dumps(line).encode()))
    assert "constraint" not in item.request
    refused = read({**line, "guided_regex": "a"})
    assert (refused.field, refused.remedy) == ("guided_regex", "remove it, or raise max_tokens")
