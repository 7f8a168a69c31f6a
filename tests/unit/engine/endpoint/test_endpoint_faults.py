"""What becomes of requests when the server fails, refuses or changes."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.endpoint.answer_stream import StreamLimits
from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError, ErrorCode, InvalidRequestError
from tests import faulty_server as fault
from tests.faulty_server import Status
from tests.unit.engine.endpoint.served import ask, connect, ids_of, prompt, run
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from helix_jobs.engine.endpoint.endpoint_engine import EndpointEngine
    from helix_jobs.engine.request import GenerationResult

BREAKS = (fault.CUT, fault.GARBAGE, fault.TRUNCATED, fault.ERROR, fault.NO_STREAM, Status(500, "oh"))
QUICK = StreamLimits(first=0.5, next=0.3)


def is_well(result: GenerationResult) -> bool:
    return (result.output_text, result.finish_reason) == ("olleh", FinishReason.STOP)


def wait_back(engine: EndpointEngine) -> None:
    wait_until(lambda: engine.info.outage is None, lambda: f"the server is not back: {engine.info.outage}")


@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_an_answer_that_breaks_is_asked_for_again(make_server: Any, open_engine: Any, broken: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.faults.extend([broken, broken])
    assert is_well(ask(engine, "hello"))
    assert len(server.asked) == 3
    assert engine.info.outage is None


@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_an_answer_that_always_breaks_fails_alone(make_server: Any, open_engine: Any, broken: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=1)
    server.faults.extend([broken] * 3)
    bad, good = run(engine, prompt("hello", "bad"), prompt("hello", "good"))
    assert isinstance(bad.error, EngineError)
    assert "3 times" in str(bad.error)
    assert is_well(good)


@pytest.mark.parametrize("broken", [fault.SILENT, fault.EMPTY])
def test_a_silent_answer_is_asked_for_again(make_server: Any, open_engine: Any, broken: str) -> None:
    server = make_server()
    engine = open_engine(server, QUICK)
    server.faults.append(broken)
    assert is_well(ask(engine, "hello"))
    assert len(server.asked) == 2


def test_an_answer_may_take_longer_than_a_look_at_the_server(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, StreamLimits(look=0.2))
    server.faults.append(fault.SILENT)
    threading.Timer(0.6, server.released.set).start()
    assert is_well(ask(engine, "hello"))
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["vllm", "llama-server", "openai"])
def test_an_endless_answer_ends_at_the_most_tokens(make_server: Any, open_engine: Any, kind: str) -> None:
    server = make_server(kind)
    server.faults.append(fault.ENDLESS)
    result = ask(open_engine(server), "hello", max_tokens=7)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.completion_tokens == 7
    assert result.error is None


def test_a_lost_server_gives_its_requests_back_and_serves_when_it_is_back(
    make_server: Any, open_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    engine = open_engine(server, slots=3)
    server.faults.extend([fault.SILENT, fault.SILENT, fault.DIE])
    with caplog.at_level(logging.INFO):
        results = run(engine, *(prompt("hello", str(number)) for number in range(5)))
        assert [result.finish_reason for result in results] == [FinishReason.ABORTED] * 5
        assert [result.error for result in results] == [None] * 5
        # The look may have met the last moment of the dying server; the next look meets none.
        wait_until(lambda: engine.info.outage == "the server takes no connection", "the reason is not renewed")
        assert ask(engine, "hello").finish_reason is FinishReason.ABORTED
        server.start()
        wait_back(engine)
        assert is_well(ask(engine, "hello"))
    texts = [record.getMessage() for record in caplog.records]
    assert sum("takes none until it is back" in text for text in texts) == 1
    assert sum("the server is back" in text for text in texts) == 1
    assert not any("hello" in text for text in texts)


def test_only_what_a_lost_server_was_computing_may_have_killed_it(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=3)
    server.faults.extend([fault.SILENT, fault.SILENT, fault.DIE])
    results = run(engine, *(prompt("hello", str(number)) for number in range(5)))
    assert [result.lost_with_server for result in results] == [True, True, True, False, False]
    later = ask(engine, "hello")
    assert (later.finish_reason, later.lost_with_server) == (FinishReason.ABORTED, False)
    server.start()
    wait_back(engine)
    assert not ask(engine, "hello").lost_with_server


def test_all_choices_are_suspected_with_one(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=3)
    server.faults.extend([fault.SILENT, fault.DIE])
    (result,) = run(engine, prompt("hello", n=2))
    assert (result.finish_reason, result.lost_with_server) == (FinishReason.ABORTED, True)


def test_a_server_that_lists_its_models_with_a_dead_engine_is_lost(make_server: Any, open_engine: Any) -> None:
    """vLLM does so for a while: an answer that breaks off then is not asked for again and again."""
    server = make_server()
    engine = open_engine(server)
    assert is_well(ask(engine, "hello"))
    server.engine_is_dead = True
    result = ask(engine, "hello")
    assert (result.finish_reason, result.error, result.lost_with_server) == (FinishReason.ABORTED, None, True)
    assert len(server.asked) == 2
    assert engine.info.outage == "the server is not ready"
    server.engine_is_dead = False
    wait_back(engine)
    assert is_well(ask(engine, "hello"))


def test_a_request_that_breaks_off_before_the_server_dies_is_suspected(make_server: Any, open_engine: Any) -> None:
    """The look at the server may meet its last moment, and the next try nobody."""
    server = make_server()
    engine = open_engine(server)
    server.faults.extend([fault.CUT, fault.SILENT])
    engine.add_request(engine.encode(prompt("hello")))
    wait_until(lambda: not engine.step() and len(server.asked) == 2, "it is not asked for again")
    server.kill()
    (result,) = finish(engine)
    assert result.lost_with_server


@pytest.mark.parametrize("code", [401, 404, 429])
def test_a_server_that_refuses_the_worker_suspects_nobody(make_server: Any, open_engine: Any, code: int) -> None:
    """Nor does one that has a limit of requests, which the look at it may meet as well."""
    server = make_server()
    engine = open_engine(server)
    server.faults.append(fault.SILENT)
    engine.add_request(engine.encode(prompt("hello", "old")))
    wait_until(lambda: not engine.step() and server.asked, "nothing is asked")
    server.status = Status(code)
    engine.add_request(engine.encode(prompt("hello", "new")))
    results = finish(engine)
    assert [result.lost_with_server for result in results] == [False] * 2
    assert [(result.finish_reason, result.error) for result in results] == [(FinishReason.ABORTED, None)] * 2


def test_a_server_that_comes_back_with_another_model_is_not_asked(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.faults.append(fault.DIE)
    assert ask(engine, "hello").finish_reason is FinishReason.ABORTED
    server.models[0] = {**server.models[0], "root": "/weights/two"}
    server.start()
    wait_until(lambda: "another model" in (engine.info.outage or ""), "the change is not noticed")
    assert ask(engine, "hello").finish_reason is FinishReason.ABORTED
    server.models[0] = {**server.models[0], "root": "/weights/one"}
    wait_back(engine)
    assert is_well(ask(engine, "hello"))


def test_another_model_between_two_answers_is_noticed(make_server: Any, open_engine: Any) -> None:
    """The server was exchanged while nothing was asked of it: the answer comes, and does not count."""
    server = make_server()
    engine = open_engine(server)
    assert is_well(ask(engine, "hello"))
    server.kill()
    server.models[0] = {**server.models[0], "root": "/weights/two"}
    server.start()
    assert ask(engine, "hello").finish_reason is FinishReason.ABORTED
    assert "another model" in engine.info.outage


def test_another_version_is_the_same_server(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.kill()
    server.version = "0.12.0"
    server.start()
    assert is_well(ask(engine, "hello"))
    assert engine.info.device.startswith("vLLM 0.12.0 at")


def test_a_limit_that_an_answer_meets_on_its_way_is_waited_for(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    server.faults.append(fault.LIMIT)
    assert is_well(ask(open_engine(server), "hello"))
    assert len(server.asked) == 2


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_later(make_server: Any, open_engine: Any, code: int) -> None:
    server = make_server()
    server.faults.extend([Status(code, "busy", (("Retry-After", "1"),)), Status(code, "busy")])
    result = ask(open_engine(server), "hello")
    assert is_well(result)
    assert len(server.asked) == 3
    assert result.queue_seconds >= 1.0


def test_a_refused_request_fails_with_the_server_s_words(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    words = "max_tokens is\n\x1b[31mtoo large " + "x" * 1000
    server.faults.append(Status(400, {"error": {"message": words, "code": 400}}))
    result = ask(engine, "hello")
    assert isinstance(result.error, InvalidRequestError)
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert "the server refuses the request (HTTP 400): max_tokens is [31mtoo large xxx" in str(result.error)
    assert len(str(result.error)) < 400
    server.faults.append(fault.BAD_REQUEST)
    assert "no such thing" in str(ask(engine, "hello").error)
    assert is_well(ask(engine, "hello"))


@pytest.mark.parametrize(("code", "word"), [(401, "HELIX_ENDPOINT_KEY"), (404, "HELIX_ENDPOINT_MODEL"), (307, "final")])
def test_a_server_that_refuses_the_worker_is_lost_to_it(
    make_server: Any, open_engine: Any, code: int, word: str
) -> None:
    server = make_server()
    engine = open_engine(server)
    server.status = Status(code, "", (("Location", "http://127.0.0.1:9/"),))
    assert ask(engine, "hello").finish_reason is FinishReason.ABORTED
    assert word in engine.info.outage
    server.status = None
    wait_back(engine)
    assert is_well(ask(engine, "hello"))


def test_an_aborted_request_closes_its_connection(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.faults.append(fault.EMPTY)
    engine.add_request(engine.encode(prompt("hello")))
    wait_until(lambda: not engine.step() and engine.counters().completion_tokens == 1, "no token comes")
    assert engine.running() == ["1"]
    engine.abort("1")
    (result,) = engine.step()
    assert (result.finish_reason, result.output_text) == (FinishReason.ABORTED, "o")
    assert server.closed_early.wait(10)
    assert not engine.has_unfinished()
    assert not engine.running()


def test_an_aborted_request_that_waits_is_never_asked_for(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server, slots=1)
    server.faults.append(fault.SILENT)
    for number in "12":
        engine.add_request(engine.encode(prompt("hello", number)))
    engine.step()
    engine.abort("2")
    assert [result.request_id for result in engine.step()] == ["2"]
    server.released.set()
    assert [result.output_text for result in finish(engine)] == ["olleh"]
    assert len(server.asked) == 1


def test_a_choice_that_fails_ends_the_others(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    engine = open_engine(server)
    server.faults.extend([fault.EMPTY, Status(400, "no"), fault.EMPTY])
    result = ask(engine, "hello", n=3)
    assert isinstance(result.error, InvalidRequestError)
    assert not engine.running()


def test_an_event_without_end_is_not_kept(make_server: Any, open_engine: Any) -> None:
    server = make_server()
    server.faults.extend([fault.HUGE] * 3)
    assert "one event is too large" in str(ask(open_engine(server), "hello").error)


def test_a_connection_closes_with_answers_under_way(make_server: Any) -> None:
    server = make_server()
    server.faults.append(fault.EMPTY)
    connection = connect(server)
    connection.ask(1, {"prompt": ids_of("hello"), "max_tokens": 5})
    wait_until(lambda: server.asked, "nothing is asked")
    connection.close()
    assert server.closed_early.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "helix-endpoint"]


def finish(engine: EndpointEngine) -> list[GenerationResult]:
    found: list[GenerationResult] = []
    wait_until(lambda: found.extend(engine.step()) or not engine.has_unfinished(), "the requests do not end")
    return found
