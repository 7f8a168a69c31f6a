"""Several servers of one Redis and one Postgres: each sees what the others hold, and a duty is done once."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from helix_jobs.api.retention import Retention
from helix_jobs.storage.schema import api_batches, batches, jobs, results
from tests.integration.batch_files import CHAT, content_lines, create, many_lines, sdk, upload, wait_status
from tests.integration.http_server import asking, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import httpx2

    from tests.worker_box import Box

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

WORDS = " ".join(f"word{number}" for number in range(60))
SERVERS = 2


@pytest.fixture
def served(services_box: Box) -> Iterator[tuple[Box, list[str]]]:
    """A worker that takes a while for many words, and the addresses of the servers."""
    services_box.start_worker(fake_step_seconds="0.05")
    with ExitStack() as stack:
        yield services_box, [stack.enter_context(serving(services_box)) for _ in range(SERVERS)]


def count(box: Box, *where: Any, of: Any = jobs) -> int:
    with box.read() as c:
        return int(c.execute(select(func.count()).select_from(of).where(*where)).scalar_one())


def test_a_file_of_one_server_is_a_batch_of_another(served: tuple[Box, list[str]]) -> None:
    _, (first, second) = served
    with sdk(first) as here, sdk(second) as there:
        file = upload(here, many_lines(20))
        batch = there.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        done = wait_status(here, batch.id, "completed", "failed")
        assert done.status == "completed"
        answers = content_lines(here, done.output_file_id)
        assert answers == content_lines(there, done.output_file_id)
        assert len(answers) == 20
        assert [one.id for one in there.batches.list()] == [batch.id]
        assert there.files.delete(file.id).deleted
        assert not list(here.files.list())


def read_stream(http: httpx2.Client, key: str, found: dict[str, str], name: str, begun: threading.Event) -> None:
    body = {"prompt": WORDS, "max_tokens": 100, "stream": True}
    with http.stream("POST", "/v1/completions", json=body, headers={"Idempotency-Key": key}) as answer:
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line.startswith("data: "):
                begun.set()
        found[name] = "".join(_text(line) for line in lines if line.startswith("data: {"))
        found[name] += "" if "data: [DONE]" in lines else " broke off"


def _text(line: str) -> str:
    return "".join(choice["text"] for choice in json.loads(line.removeprefix("data: "))["choices"])


def test_a_stream_that_is_asked_for_again_at_another_server_is_the_same_answer(served: tuple[Box, list[str]]) -> None:
    box, (first, second) = served
    found: dict[str, str] = {}
    begun = threading.Event()
    with asking(first) as here, asking(second) as there:
        reader = threading.Thread(target=read_stream, args=(here, "k", found, "here", begun))
        reader.start()
        assert begun.wait(30)
        read_stream(there, "k", found, "there", threading.Event())
        reader.join()
    assert found == {"here": WORDS, "there": WORDS}
    assert (count(box), count(box, of=results)) == (1, 1)


@pytest.mark.thorough
def test_batches_of_both_are_validated_and_expire_once(served: tuple[Box, list[str]]) -> None:
    box, addresses = served
    with ExitStack() as stack:
        clients = [stack.enter_context(sdk(address)) for address in addresses]
        made = [create(clients[number % SERVERS], many_lines(30)) for number in range(6)]
        for batch in made:
            wait_status(clients[0], batch.id, "in_progress", "completed")
        assert count(box) == 6 * 30
        with box.own_database.write() as c:  # their windows end
            passed = datetime.now(UTC) - timedelta(seconds=1)
            c.execute(update(api_batches).values(due_at=passed, expires_at=passed))
        for number, batch in enumerate(made):
            ended = wait_status(clients[number % SERVERS], batch.id, "expired", "completed")
            assert ended.request_counts is not None
            assert ended.request_counts.total == 30
    assert count(box, jobs.c.finished_at.is_(None)) == 0
    with box.client() as own:
        for status in own.list():
            assert sum(status.counts.values()) == 30, "each job is counted once"


@pytest.mark.thorough
def test_old_requests_are_removed_by_both_at_once(served: tuple[Box, list[str]]) -> None:
    box, addresses = served
    for address in addresses:
        with asking(address) as http:
            for number in range(15):
                assert http.post("/v1/completions", json={"prompt": f"p{number}"}).status_code == 200
    databases = [box.database() for _ in range(SERVERS)]
    later = datetime.now(UTC) + timedelta(hours=25)
    removed: list[int] = []
    keepers = [Retention(database, 0) for database in databases]
    threads = [threading.Thread(target=lambda one=one: removed.append(one.remove_old(later))) for one in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.dispose()
    wait_until(lambda: not count(box, of=batches), "all are removed")
    assert len(removed) == SERVERS
    assert (count(box), count(box, of=results)) == (0, 0)


def test_one_server_stops_and_the_other_goes_on(services_box: Box) -> None:
    services_box.start_worker(fake_step_seconds="0.05")
    with serving(services_box) as address, sdk(address) as client, asking(address) as http:
        with serving(services_box) as leaving, sdk(leaving) as other:
            batch = create(other, many_lines(50))
            answer = http.post("/v1/completions", json={"prompt": "beside"})
            assert answer.json()["choices"][0]["text"] == "beside"
        done = wait_status(client, batch.id, "completed", "failed")
        assert (done.status, len(content_lines(client, done.output_file_id))) == ("completed", 50)
