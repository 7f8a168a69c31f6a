"""What comes of a server's answers, for each kind of server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from helix_jobs.bounds import INTERACTIVE_PRIORITY
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.request import FinishReason
from tests.faulty_server import SPLIT
from tests.unit.engine.endpoint.served import MOST_SECONDS, ask, ids_of, prompt, run

KINDS = ("vllm", "llama-server", "llama-cpp-python", "openai")
WITH_IDS = KINDS[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_read_as_an_own_one(make_server: Any, open_engine: Any, kind: str) -> None:
    server = make_server(kind)
    engine = open_engine(server)
    result = ask(engine, "hello there")
    assert (result.output_text, result.finish_reason, result.error) == ("ereht olleh", FinishReason.STOP, None)
    assert list(result.output_token_ids) == ids_of("ereht olleh")
    assert (result.prompt_tokens, result.completion_tokens) == (11, 11)
    assert result.ttft_seconds is not None
    assert 0 <= result.ttft_seconds <= result.total_seconds
    assert (result.draft_tokens, result.acceptance_rate, result.mean_acceptance_length) == (0, None, None)
    assert result.cached_prompt_tokens == (2 if kind in WITH_IDS else 0)
    assert engine.counters().completion_tokens == 11
    assert engine.counters().prompt_tokens == 11


@pytest.mark.parametrize("kind", KINDS)
def test_max_tokens_end_an_answer(make_server: Any, open_engine: Any, kind: str) -> None:
    result = ask(open_engine(make_server(kind)), "hello there", max_tokens=4)
    assert (result.output_text, result.finish_reason) == ("ereh", FinishReason.LENGTH)
    assert result.completion_tokens == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_says_what_answers(make_server: Any, open_engine: Any, kind: str) -> None:
    server = make_server(kind, version="1.2.3")
    info = open_engine(server).info
    names = {"vllm": "vLLM 1.2.3", "llama-server": "llama-server 1.2.3", "llama-cpp-python": "llama-cpp-python 1.2.3"}
    text = "" if kind in WITH_IDS else ", text both ways"
    assert info.device == f"{names.get(kind, 'OpenAI-compatible server')}{text} at {server.url}"
    assert (info.target_model, info.draft_model, info.is_remote) == ("served/model", None, True)
    assert info.max_model_len == 200


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_cut_here(make_server: Any, open_engine: Any, kind: str) -> None:
    engine = open_engine(make_server(kind))
    for keeps, text in ((False, "ereh"), (True, "ereht o")):
        result = ask(engine, "hello there", stop=("t o",), include_stop_str_in_output=keeps)
        assert (result.output_text, result.finish_reason) == (text, FinishReason.STOP)


def test_a_stop_string_ends_the_server_s_work_as_well(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.answers[str(ids_of("go"))] = ids_of("a!" + "b" * 150)
    result = ask(engine, "go", stop=("!",), max_tokens=190)
    assert result.output_text == "a"
    assert result.completion_tokens == 2


@pytest.mark.parametrize("kind", WITH_IDS)
def test_stop_tokens_are_watched_here(make_server: Any, open_engine: Any, kind: str) -> None:
    stop = ids_of("o")
    result = ask(open_engine(make_server(kind)), "hello there", stop_token_ids=tuple(stop))
    assert (result.output_text, result.finish_reason) == ("ereht ", FinishReason.STOP)


@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_is_asked_for_by_itself(make_server: Any, open_engine: Any, kind: str) -> None:
    server = make_server(kind)
    result = ask(open_engine(server), "abc", n=3, temperature=1.0)
    assert [choice.output_text for choice in result.choices] == ["cba"] * 3
    assert [choice.choice for choice in result.choices] == [0, 1, 2]
    assert len({body["seed"] for body in server.asked}) == 3


def test_no_more_answers_are_asked_for_at_once_than_there_are_slots(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=2)
    requests = [prompt(f"say {letter}", letter) for letter in "abcdefg"]
    results = run(engine, *requests)
    assert [result.output_text for result in results] == [f"{letter} yas" for letter in "abcdefg"]
    assert server.connections <= 2 + 1  # one more asks what the server is


def test_connections_are_used_again(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=1)
    run(engine, *(prompt("one after the other", str(number)) for number in range(10)))
    assert server.connections == 1


def test_messages_are_rendered_here(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    result = ask(open_engine(server), "", messages=({"role": "user", "content": "hi"},))
    assert server.asked[0]["prompt"] == ids_of("u.hi!a.")
    assert result.output_text == ".a!ih.u"


@pytest.mark.parametrize("kind", WITH_IDS)
def test_log_probabilities_come_with_their_tokens(make_server: Any, open_engine: Any, kind: str) -> None:
    result = ask(open_engine(make_server(kind)), "abc", logprobs=2)
    assert result.logprobs is not None
    found = list(result.logprobs)
    assert [one.token_id for one in found] == ids_of("cba")
    assert [one.logprob for one in found] == [-0.5, -1.5, -2.5]
    assert found[1].alternatives == ((ids_of("b")[0], -1.5), (1, -9.0))


def test_tokens_that_the_server_leaves_out_are_found_in_the_text(make_server: Any, open_engine: Any) -> None:
    server = make_server("llama-server")
    server.faults.append(SPLIT)
    result = ask(open_engine(server), "hello")
    assert (result.output_text, list(result.output_token_ids)) == ("olleh", ids_of("olleh"))


def test_a_form_is_asked_for_and_judged_here(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    fields = {"constraint": Constraint("choice", '["yes", "no"]')}
    kept = ask(engine, "on", **fields)
    broken = ask(engine, "perhaps", **fields)
    assert server.asked[0]["structured_outputs"] == {"choice": ["yes", "no"]}
    assert [result.is_valid for result in (kept, broken)] == [True, False]


def test_a_growing_answer_can_be_read(make_server: Any, open_engine: Any) -> None:
    for kind in KINDS:
        server = make_server(kind)
        engine = open_engine(server)
        engine.add_request(engine.encode(prompt("abc", stream="here")))
        texts = []
        while engine.has_unfinished():
            engine.step()
            texts += [one.read().text for one in engine.partials()]
        assert all("cba".startswith(text) for text in texts), kind


def test_the_most_urgent_request_is_asked_first(make_server: Any, open_engine: Any) -> None:
    engine = open_engine(make_server(), slots=1)
    for number, priority in enumerate((0, 5, 0, INTERACTIVE_PRIORITY, 5)):
        engine.add_request(engine.encode(prompt("hello", str(number), priority=priority)))
    order: list[str] = []
    until = time.monotonic() + MOST_SECONDS
    while engine.has_unfinished():
        order += [result.request_id for result in engine.step()]
        assert time.monotonic() < until, "the requests do not end"
    assert order == ["3", "1", "4", "0", "2"]
