"""Answers that are streamed while they grow: with a real server, worker, broker and database."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest
from sqlalchemy import select

from helix_jobs.broker.publisher import broker_url, read_queue_names
from helix_jobs.broker.token_channel import Growth, channel_of
from helix_jobs.storage.schema import jobs, results
from tests.integration.http_server import asking, chat, serving
from tests.redis_client import redis_client
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.worker_box import Box

WORDS = " ".join(f"word{number}" for number in range(60))
# Four seconds of them, where something has to happen before the end.
MANY_WORDS = " ".join(f"word{number}" for number in range(160))
SLOW = {"fake_step_seconds": "0.1"}


@pytest.fixture
def served(box: Box) -> Iterator[tuple[Box, str]]:
    """A worker that takes a tenth of a second for four words."""
    box.start_worker(**SLOW)
    with serving(box) as address:
        yield box, address


def events(answer: httpx2.Response) -> Iterator[Any]:
    """The values of the events, as they come; DONE as a text."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def text_of(event: Any) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def stored(box: Box) -> list[str]:
    with box.read() as c:
        return list(c.execute(select(results.c.output_text).order_by(results.c.job_id, results.c.choice)).scalars())


@pytest.mark.thorough(fast=1)
def test_the_sdk_reads_an_answer_while_it_grows(served: tuple[Box, str]) -> None:
    box, address = served
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        seen: list[str] = []
        before_the_end = 0
        usage = None
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": MANY_WORDS}],
            max_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if choice.delta.content:
                    seen.append(choice.delta.content)
                    before_the_end += not stored(box)
        assert "".join(seen) == MANY_WORDS
        assert before_the_end > 3, "most of it came before the job had ended"
        assert usage is not None
        assert usage.completion_tokens == 160
        pieces = client.completions.create(model="demo", prompt=WORDS, max_tokens=100, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == WORDS
    assert stored(box) == [MANY_WORDS, WORDS]


@pytest.mark.thorough(fast=1)
def test_choices_are_streamed_side_by_side(served: tuple[Box, str]) -> None:
    box, address = served
    texts = {0: "", 1: ""}
    with asking(address) as http:
        body = {"prompt": WORDS, "n": 2, "temperature": 1, "stream": True, "max_tokens": 100}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            for event in events(answer):
                if event != "[DONE]":
                    for choice in event["choices"]:
                        texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == stored(box)


@pytest.mark.thorough(fast=1)
def test_what_is_asked_about_an_answer_comes_with_its_end(served: tuple[Box, str]) -> None:
    _, address = served
    with asking(address) as http:
        with http.stream("POST", "/v1/chat/completions", json=chat("a b c", logprobs=True, stream=True)) as answer:
            *chunks, done = events(answer)
        assert done == "[DONE]"
        assert "".join(map(text_of, chunks)) == "a b c"
        assert len(chunks[-1]["choices"][0]["logprobs"]["content"]) == 3
        for path, body in (("/v1/chat/completions", chat("a b")), ("/v1/completions", {"prompt": "a b"})):
            whole = http.post(path, json={**body, "prompt_logprobs": 1}).json()
            with http.stream("POST", path, json={**body, "prompt_logprobs": 1, "stream": True}) as answer:
                *_, last, _ = events(answer)
            assert last.get("prompt_logprobs") == whole.get("prompt_logprobs")
            assert last["choices"][0].get("prompt_logprobs") == whole["choices"][0].get("prompt_logprobs")
            assert "prompt_logprobs" in {*whole, *whole["choices"][0]}


@pytest.mark.thorough(fast=1)
def test_a_worker_that_dies_is_followed_by_another_and_nothing_comes_twice(box: Box) -> None:
    first = box.start_worker(**SLOW)
    with serving(box) as address, asking(address) as http:
        text, killed = "", False
        with http.stream("POST", "/v1/chat/completions", json=chat(MANY_WORDS, stream=True, max_tokens=200)) as answer:
            for event in events(answer):
                if event == "[DONE]":
                    break
                text += text_of(event)
                if len(text) > 100 and not killed:
                    killed = True
                    first.kill()
                    box.start_worker(**SLOW)
        assert text == MANY_WORDS
    with box.read() as c:
        assert c.execute(select(jobs.c.state, jobs.c.attempts)).all() == [("succeeded", 2)]


def test_a_client_that_leaves_cancels_its_job(served: tuple[Box, str]) -> None:
    box, address = served
    with asking(address) as http:
        with http.stream("POST", "/v1/chat/completions", json=chat(WORDS * 20, stream=True, max_tokens=2000)) as answer:
            next(events(answer))

        def states() -> list[str]:
            with box.read() as c:
                return list(c.execute(select(jobs.c.state)).scalars())

        wait_until(lambda: states() == ["cancelled"], lambda: f"the job is cancelled, not {states()}")


@pytest.mark.thorough(fast=1)
def test_without_the_channel_an_answer_comes_whole(served: tuple[Box, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = served
    # Its pieces go to a server that nobody hears.
    monkeypatch.setattr("helix_jobs.broker.token_channel.Growth.of_message", lambda _data: None)
    with asking(address) as http:
        with http.stream("POST", "/v1/chat/completions", json=chat(WORDS, stream=True, max_tokens=100)) as answer:
            *chunks, done = events(answer)
        assert done == "[DONE]"
        assert [text_of(chunk) for chunk in chunks] == [WORDS]


def test_a_forged_piece_ends_the_stream_and_changes_no_answer(served: tuple[Box, str]) -> None:
    box, address = served
    database = box.database()
    names = read_queue_names(database)
    database.dispose()
    url = broker_url(box.settings)
    with asking(address) as http:
        with http.stream("POST", "/v1/chat/completions", json=chat(MANY_WORDS, stream=True, max_tokens=200)) as answer:
            incoming = events(answer)
            text = text_of(next(incoming))
            with box.read() as c:
                job_id, lease, request = c.execute(select(jobs.c.id, jobs.c.lease, jobs.c.request)).one()
            forged = Growth(job_id, lease + 1, 0, 0, "", 0, text[:-1] + "!" + " forged")
            with redis_client(url) as client:
                client.publish(channel_of(names, request["stream"]), b"\xff no message")
                client.publish(channel_of(names, request["stream"]), forged.to_message())
            *_, last = incoming
        assert last["error"]["code"] == "answer_changed"
    wait_until(lambda: stored(box) == [MANY_WORDS] or _is_cancelled(box), "the job ends")


def _is_cancelled(box: Box) -> bool:
    with box.read() as c:
        return c.execute(select(jobs.c.state)).scalar_one() == "cancelled"


@pytest.mark.thorough
def test_a_refusal_has_a_status_and_a_late_failure_an_event(box: Box) -> None:
    box.start_worker(**SLOW, fake_fail="fails now")
    with serving(box) as address, asking(address) as http:
        assert http.post("/v1/chat/completions", json=chat("a", stream=True, n=-1)).status_code == 400
        assert http.post("/v1/chat/completions", json=chat("a", stream="yes")).status_code == 400
        assert http.post("/v1/chat/completions", json=chat("a", stream_options={})).status_code == 400
        wish = {"include_usage": "yes"}
        refused = http.post("/v1/chat/completions", json=chat("a", stream=True, stream_options=wish))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream_options.include_usage")
        answer = http.post("/v1/chat/completions", json=chat("this fails now", stream=True))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        box.started[0].send(signal.SIGSTOP)
        with http.stream("POST", "/v1/chat/completions", json=chat(WORDS, stream=True)) as begun:
            canceller = threading.Timer(1.0, lambda: _cancel(box))
            canceller.start()
            found = begun.read()
            canceller.join()
        assert begun.status_code == 409 or b'"code": "cancelled"' in found
        box.started[0].send(signal.SIGCONT)


def _cancel(box: Box) -> None:
    with box.read() as c:
        job_id = c.execute(select(jobs.c.id).order_by(jobs.c.id.desc())).scalars().first()
    with box.client() as client:
        client.cancel(int(job_id or 0))
