"""``helix serve``: chat completions and completions over HTTP, with a real server, worker, broker and database."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import openai
import pytest
from sqlalchemy import func, select

from helix_jobs.api.retention import Retention
from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.storage.schema import batches, jobs, results
from tests.integration.http_server import asking, chat, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker_box import Box

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"


@pytest.fixture
def served(box: Box) -> Iterator[tuple[Box, str]]:
    box.start_worker()
    with serving(box) as address:
        yield box, address


def count(box: Box, table: object) -> int:
    with box.read() as c:
        return c.execute(select(func.count()).select_from(table)).scalar_one()


@pytest.mark.thorough(fast=1)
def test_the_sdk_of_openai_is_answered(served: tuple[Box, str]) -> None:
    box, address = served
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "three small words"}], max_tokens=16
        )
        assert answer.choices[0].message.content == "three small words"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert answer.model == "fake-target"
        text = client.completions.create(model="demo", prompt="and a text", n=2, temperature=1)
        assert [len(choice.text.split()) for choice in text.choices] == [3, 3]
        assert [model.id for model in client.models.list()] == ["fake-target"]
        assert client.models.retrieve("fake-target").object == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another")
    assert count(box, results) == 3
    with box.client() as own:
        assert own.list() == [], "lists of batches leave single requests out"
    with box.read() as c:
        assert set(c.execute(select(jobs.c.priority)).scalars()) == {MAX_PRIORITY}


@pytest.mark.thorough(fast=1)
def test_refusals_name_the_field_and_store_nothing(served: tuple[Box, str]) -> None:
    box, address = served
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x"}], temperature=-1)
        assert raised.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "x"}], extra_body={"max_token": 5}
            )
        assert "max_tokens" in str(raised.value)
    with asking(address) as http:
        for text, status in (("{", 400), ("[1]", 400), ('{"prompt": NaN}', 400), ('{"prompt":"a","prompt":"b"}', 400)):
            answer = http.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, text
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert http.post("/v1/completions", content="prompt=x").status_code == 415
        assert http.get("/v1/completions").status_code == 405
        unknown = http.get("/v1/nothing").json()["error"]["message"]
        assert unknown == "there is no GET /v1/nothing; GET /openapi.json lists what there is"
        assert http.get("/docs").status_code == 200
        for path in ("/health", "/ready"):
            assert (http.head(path).status_code, http.head(path).content) == (200, b"")
    assert count(box, jobs) == 0


@pytest.mark.thorough(fast=1)
def test_an_answer_comes_beside_a_full_queue(served: tuple[Box, str]) -> None:
    box, address = served
    batch = box.submit(*[f"bulk {i}" for i in range(3000)], max_tokens=8)
    with asking(address) as http:
        for number in range(3):
            answer = http.post("/v1/completions", json={"prompt": f"urgent {number}"})
            assert answer.json()["choices"][0]["text"] == f"urgent {number}"
    with box.client() as client:
        status = client.status(batch)
        assert not status.done, "the bulk work still waits"
        client.cancel(batch)


def test_an_idempotency_key_answers_once(served: tuple[Box, str]) -> None:
    box, address = served
    with asking(address) as http:
        headers = {"Idempotency-Key": "night-1"}
        first = http.post("/v1/chat/completions", json=chat("once", temperature=1), headers=headers)
        again = http.post("/v1/chat/completions", json=chat("once", temperature=1), headers=headers)
        assert first.json() == again.json()
        other = http.post("/v1/chat/completions", json=chat("another"), headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert http.post("/v1/chat/completions", json=chat(), headers={"Idempotency-Key": "x" * 201}).status_code == 400
    assert count(box, jobs) == 1


@pytest.mark.thorough(fast=1)
def test_the_same_key_at_the_same_time_answers_once(served: tuple[Box, str]) -> None:
    box, address = served
    found: list[str] = []

    def ask() -> None:
        with asking(address) as http:
            found.append(http.post("/v1/completions", json={"prompt": "p"}, headers={"Idempotency-Key": "k"}).text)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert count(box, jobs) == 1


def test_the_description_says_what_needs_a_key_and_what_a_server_answers_that_is_not_ready(box: Box) -> None:
    with serving(box, api_keys=KEY) as address, asking(address) as nobody, asking(address, KEY) as http:
        found = http.get("/openapi.json").json()
        assert found["security"] == [{"key": []}]
        open_paths = {path for path, one in found["paths"].items() if one.get("get", {}).get("security") == []}
        assert open_paths == {"/health", "/ready"}
        assert [nobody.get(path).status_code for path in ("/health", "/ready", "/v1/models")] == [200, 503, 401]
        described = found["paths"]["/ready"]["get"]["responses"]["503"]["content"]["application/json"]["schema"]
        standing = nobody.get("/ready").json()
        assert set(described["required"]) == set(described["properties"]) == set(standing)
        assert standing["status"] in described["properties"]["status"]["enum"]


def test_without_a_worker_nobody_waits(box: Box) -> None:
    with serving(box) as address, asking(address) as http:
        answer = http.post("/v1/completions", json={"prompt": "p"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "helix worker" in answer.json()["error"]["message"]
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").status_code == 503
        box.start_worker()
        wait_until(lambda: http.get("/ready").status_code == 200, "the worker is seen")
        assert http.post("/v1/completions", json={"prompt": "p"}).status_code == 200
    assert count(box, jobs) == 1


@pytest.mark.thorough(fast=1)
def test_a_client_that_goes_away_cancels_its_job(box: Box) -> None:
    box.start_worker()
    with serving(box) as address:
        box.started[0].send(19)  # SIGSTOP: the job is not taken
        try:
            with asking(address) as http, pytest.raises(Exception, match="timed out"):
                http.post("/v1/completions", json={"prompt": "gone"}, timeout=0.7)
            with asking(address) as http, pytest.raises(Exception, match="timed out"):
                http.post("/v1/completions", json={"prompt": "back"}, timeout=0.7, headers={"Idempotency-Key": "k"})

            def states() -> dict[str, str]:
                with box.read() as c:
                    rows = c.execute(select(jobs.c.request, jobs.c.state)).all()
                return {row.request["prompt"]: row.state for row in rows}

            wait_until(lambda: states().get("gone") == "cancelled", "the job is cancelled")
            assert states()["back"] in {"queued", "running"}, "its client may come back"
        finally:
            box.started[0].send(18)  # SIGCONT


def test_a_failed_job_is_a_refusal(served: tuple[Box, str]) -> None:
    _, address = served
    with asking(address) as http:
        answer = http.post("/v1/completions", json={"prompt": "word " * 200_000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_keys_are_asked_for_and_requests_counted(box: Box) -> None:
    box.start_worker()
    with serving(box, api_keys=f"{KEY},{OTHER}", max_open_requests=2) as address:
        with asking(address) as http:
            assert http.post("/v1/completions", json={"prompt": "p"}).status_code == 401
            assert http.get("/v1/models").status_code == 401
            assert http.get("/health").status_code == 200
        with asking(address, KEY) as http, asking(address, OTHER) as other:
            headers = {"Idempotency-Key": "k"}
            assert http.post("/v1/completions", json={"prompt": "mine"}, headers=headers).status_code == 200
            assert other.post("/v1/completions", json={"prompt": "theirs"}, headers=headers).status_code == 200
            text = http.get("/metrics").text
            assert 'route="/v1/completions",status="200"} 2.0' in text
            assert 'route="/v1/completions",status="401"} 1.0' in text or 'route="unknown",status="401"' in text


def test_a_key_may_send_so_many_requests_in_a_minute(box: Box) -> None:
    box.start_worker()
    with (
        serving(box, api_keys=f"{KEY},{OTHER}", requests_per_minute=2) as address,
        asking(address, KEY) as http,
        asking(address, OTHER) as other,
    ):
        answers = [http.post("/v1/completions", json={"prompt": "p"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert http.get("/v1/models").status_code == 200
        assert other.post("/v1/completions", json={"prompt": "p"}).status_code == 200


def test_a_body_beyond_the_limit_is_refused(served: tuple[Box, str]) -> None:
    box, address = served
    with asking(address) as http:
        assert http.post("/v1/completions", json={"prompt": "x" * 6_000_000}).status_code == 413
    assert count(box, jobs) == 0


def test_answered_requests_are_removed_after_their_time(served: tuple[Box, str]) -> None:
    box, address = served
    with asking(address) as http:
        for _ in range(3):
            http.post("/v1/completions", json={"prompt": "p"})
    bulk = box.submit("stays")
    box.wait_states(bulk, succeeded=1)
    database = box.database()
    retention = Retention(database, 0)
    try:
        assert Retention(database, 24).remove_old(datetime.now(UTC)) == 0
        assert retention.remove_old(datetime.now(UTC) + timedelta(seconds=1)) == 3
    finally:
        retention.close()
        database.dispose()
    with box.read() as c:
        assert c.execute(select(batches.c.id)).scalars().all() == [bulk]


def test_several_prompts_are_answered_in_their_order(served: tuple[Box, str]) -> None:
    box, address = served
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        found = client.completions.create(model="demo", prompt=["a b", "c d e"], n=2, temperature=1, seed=1)
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        assert [len(choice.text.split()) for choice in found.choices] == [2, 2, 3, 3]
        assert found.usage is not None
        assert found.usage.prompt_tokens == 5
        ids = client.completions.create(model="demo", prompt=[[1, 2], [3]])
        assert [choice.text for choice in ids.choices] == ["1 2", "3"]
        before = count(box, jobs)
        for prompts, fields in ((["a", ""], {}), (["a"] * 129, {}), (["a", "b"], {"stream": True}), (["a", 1], {})):
            with pytest.raises(openai.BadRequestError) as raised:
                client.completions.create(model="demo", prompt=prompts, **fields)  # type: ignore[call-overload]  # wrong
            assert raised.value.param == "prompt"
        assert count(box, jobs) == before, "nothing of a refused request is stored"


def test_several_prompts_under_one_key_are_answered_once(served: tuple[Box, str]) -> None:
    box, address = served
    with asking(address) as http:
        body, headers = {"prompt": ["a", "b"], "temperature": 1}, {"Idempotency-Key": "k"}
        first = http.post("/v1/completions", json=body, headers=headers)
        assert first.json() == http.post("/v1/completions", json=body, headers=headers).json()
        other = http.post("/v1/completions", json={**body, "prompt": ["a", "c"]}, headers=headers)
        assert other.status_code == 409
        for prompt in (["a", "b", "c"], ["a"], "a"):
            other = http.post("/v1/completions", json={**body, "prompt": prompt}, headers=headers)
            assert other.status_code == 409, f"another number of prompts is another request: {prompt}"
        assert count(box, jobs) == 2
        alone = {"Idempotency-Key": "long_" * 40}
        assert http.post("/v1/completions", json=body, headers=alone).status_code == 200
    assert count(box, jobs) == 4
