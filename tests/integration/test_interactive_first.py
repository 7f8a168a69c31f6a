"""Requests over HTTP pass bulk work that fills the slots, threads and prefetched messages of a real worker."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from helix_jobs.broker.celery.app import concurrency
from helix_jobs.storage.schema import batches, jobs
from tests.integration.http_server import asking, serving
from tests.redis_client import redis_client
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.worker_box import Box

pytestmark = pytest.mark.redis

SLOTS, INTERACTIVE = 4, 2
# More than the worker's threads and its prefetched messages.
MANY = 3 * concurrency(SLOTS)
ENDLESS = {"fake_hang": "endless"}


def fill(box: Box) -> str:
    """Bulk work that never ends, in every thread and place of the worker; what does not fit waits in the broker."""
    batch = box.submit(*[f"endless {number}" for number in range(MANY)])
    publisher = box.publisher()
    taken = 2 * concurrency(SLOTS)
    wait_until(
        lambda: box.states(batch).get("running") == concurrency(SLOTS) and publisher.depth() == MANY - taken,
        lambda: f"{box.states(batch)}, {publisher.depth()} in the broker",
    )
    publisher.close()
    return batch


def ask(http: httpx2.Client, prompt: str) -> str:
    answer = http.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def interactive_states(box: Box) -> list[str]:
    """The states of the requests, in the order in which they came."""
    with box.read() as c:
        query = select(jobs.c.state).join(batches, batches.c.id == jobs.c.batch_id).where(batches.c.interactive)
        return list(c.execute(query.order_by(jobs.c.id)).scalars())


def sent(address: str, prompt: str) -> HTTPConnection:
    """A client that has sent its request."""
    client = HTTPConnection(urlsplit(address).netloc, timeout=60)
    client.request("POST", "/v1/completions", json.dumps({"prompt": prompt}), {"Content-Type": "application/json"})
    return client


@contextmanager
def asked(address: str, *prompts: str) -> Iterator[list[Any]]:
    """Clients that ask at the same time; on leaving, their answers, or None where there was none."""
    answers: list[Any] = [None] * len(prompts)

    def run(place: int) -> None:
        with asking(address) as http:
            answers[place] = ask(http, prompts[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(60)


@pytest.mark.thorough(fast=1)
def test_a_request_passes_prefetched_messages_and_threads_that_wait(box: Box) -> None:
    box.start_worker(**ENDLESS)
    batch = fill(box)
    with serving(box) as address, asking(address) as http:
        for number in range(2 * INTERACTIVE + 1):
            assert ask(http, f"one more {number}") == f"one more {number}"
    assert box.states(batch) == {"running": concurrency(SLOTS), "queued": MANY - concurrency(SLOTS)}


def test_it_passes_them_over_a_new_connection_too(box: Box) -> None:
    worker = box.start_worker(**ENDLESS)
    fill(box)
    with serving(box) as address, asking(address) as http:
        assert ask(http, "before") == "before"
        with redis_client(box.publisher().url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert ask(http, "behind") == "behind"
    assert worker.process.poll() is None, worker.log


def test_those_beyond_its_places_wait_and_are_cancelled_with_their_clients(box: Box) -> None:
    box.start_worker(**ENDLESS)
    batch = fill(box)
    with serving(box) as address:
        prompts = [f"endless request {number}" for number in range(INTERACTIVE + 2)]
        clients = [sent(address, prompt) for prompt in prompts]
        wait_until(
            lambda: sorted(interactive_states(box)) == ["queued"] * 2 + ["running"] * INTERACTIVE,
            lambda: str(interactive_states(box)),
        )
        for client in clients:
            client.close()
        wait_until(
            lambda: interactive_states(box) == ["cancelled"] * len(prompts), lambda: str(interactive_states(box))
        )
        with asking(address) as http:
            assert ask(http, "after them") == "after them"
    assert box.states(batch)["running"] == concurrency(SLOTS)


@pytest.mark.thorough
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_worker_that_ends_with_requests_in_hand_leaves_them_to_the_next(box: Box, how: signal.Signals) -> None:
    first = box.start_worker("--shutdown-grace", "0", **ENDLESS)
    batch = fill(box)
    prompts = [f"endless request {number}" for number in range(INTERACTIVE + 1)]
    with serving(box) as address, asked(address, *prompts) as answers:
        wait_until(
            lambda: interactive_states(box).count("running") == INTERACTIVE and len(interactive_states(box)) == 3,
            lambda: str(interactive_states(box)),
        )
        first.send(how)
        first.wait()
        box.start_worker()
    assert answers == prompts
    box.wait_states(batch, succeeded=MANY)
    publisher = box.publisher()
    wait_until(lambda: publisher.depth() == 0, lambda: f"{publisher.depth()} in the broker")
    publisher.close()
