"""``n``, under every name it goes by: how many answers a line asks for."""

from __future__ import annotations

import pytest

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InputError
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

CHAT = {"messages": [{"role": "user", "content": "Name a river"}]}


def gemini(**config):
    contents = [{"role": "user", "parts": [{"text": "Name a river"}]}]
    return {"key": "g", "request": {"contents": contents, "generationConfig": config}}


def fault(values, **given):
    item = read_one(values, **given)
    assert isinstance(item, BadLine), item
    assert not item.others
    return item.field, item.reason


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a", "n": 3, "temperature": 0.7},
        {"prompt": "a", "n": 3.0, "temperature": 0.7, "best_of": 3},
        {"prompt": "a", "n": "3", "temperature": 0.7, "best_of": 1},
        {"prompt": "a", "num_return_sequences": 3, "temperature": 0.7},
        {"prompt": "a", "n": 3, "num_return_sequences": 3, "temperature": 0.7, "best_of": None},
        {**CHAT, "n": 3, "temperature": 0.7},
        {"url": "/v1/chat/completions", "body": {**CHAT, "n": 3, "temperature": 0.7}},
        {"url": "/v1/completions", "body": {"prompt": "a", "n": 3, "best_of": 3, "temperature": 0.7}},
        gemini(candidateCount=3, temperature=0.7),
        gemini(candidate_count=3, temperature=0.7),
    ],
)
def test_every_form_takes_it(line):
    item = read_one(line)
    assert isinstance(item, NewJob), item
    assert item.request["sampling"] == {"n": 3, "temperature": 0.7}
    assert item.num_choices == 3
    assert to_engine_request(1, {**item.request, "seed": 1}).sampling_params.n == 3


def test_a_batch_s_default_holds_for_lines_that_give_none():
    defaults = SamplingParams(n=4, temperature=0.7)
    assert read_one({"prompt": "a"}, defaults).request["sampling"] == {"n": 4, "temperature": 0.7}
    assert read_one({"prompt": "a", "n": 1, "temperature": 0}, defaults).request["sampling"] == {}
    assert read_one({"prompt": "a", "n": 128}, defaults).num_choices == 128
    assert read_one({"prompt": "a", "temperature": 0.5}, SamplingParams(n=2)).num_choices == 2


@pytest.mark.parametrize("n", [0, -1, 129, 1.5, True, "x", [2], {}])
def test_only_1_to_128_is_taken(n):
    assert fault({"prompt": "a", "temperature": 1, "n": n})[0] == "n"
    assert fault({"prompt": "a", "temperature": 1, "num_return_sequences": n})[0] == "num_return_sequences"
    assert fault(gemini(temperature=1, candidateCount=n))[0] == "request.generationConfig.candidateCount"


def test_answers_that_would_all_be_the_same_are_refused():
    same = "asks for 2 answers, which are all the same at temperature 0"
    assert fault({"prompt": "a", "n": 2}) == ("n", same)
    assert fault({"prompt": "a", "num_return_sequences": 2, "temperature": 0.0}) == ("num_return_sequences", same)
    assert fault({"url": "/v1/chat/completions", "body": {**CHAT, "n": 2}}) == ("body.n", same)
    assert fault(gemini(candidateCount=2)) == ("request.generationConfig.candidateCount", same)
    assert fault({"prompt": "a"}, defaults=SamplingParams(n=2)) == ("n", same)


@pytest.mark.parametrize("best_of", [2, 4, 0, True, "x", [], 3.5])
def test_best_of_may_only_agree(best_of):
    line = {"prompt": "a", "temperature": 1, "n": 3, "best_of": best_of}
    assert fault(line) == ("best_of", "differs from n")


def test_answers_without_new_tokens_are_refused_too():
    line = {"prompt": "a", "temperature": 1, "n": 2, "echo": True, "logprobs": 0, "max_tokens": 0}
    assert fault(line) == ("n", "asks for 2 answers, which are all the same without new tokens")
    assert fault({"prompt": "a", "choices": ["x", "y"], "n": 2})[0] == "n"


def test_two_names_that_differ_are_refused():
    line = {"prompt": "a", "temperature": 1, "n": 3, "num_return_sequences": 2}
    assert fault(line) == ("n", "differs from num_return_sequences")


def test_the_batch_limit_counts_answers():
    limits = Limits(jobs=10)
    limits.check_count(2, 10, 2)
    with pytest.raises(InputError, match="line 3: one batch may ask for at most 10 answers, and"):
        limits.check_count(3, 12, 3)
    with pytest.raises(InputError, match="line 11: one batch holds at most 10 jobs"):
        limits.check_count(11, 11, 11)
