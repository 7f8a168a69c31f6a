"""A worker whose answers a server of the user's computes: the server dies in the middle, and nothing is lost."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.faulty_server import CUT, DIE, SILENT, FaultyServer, Status
from tests.unit.engine.endpoint.served import ids_of, text_of, tokenizer_folder
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker_box import Box, WorkerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the embedded broker of POSIX")

KEY = "correct-horse-battery"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    made = FaultyServer("vllm", text_of=text_of, ids_of=ids_of, key=KEY)
    yield made
    made.close()


def endpoint(server: FaultyServer, folder: Path, **more: str) -> dict[str, str]:
    return {
        "engine": "endpoint",
        "endpoint_url": f"{server.url}/v1",
        "endpoint_key": KEY,
        "target_model": str(folder),
        "max_batch_size": "4",
        **more,
    }


@pytest.mark.thorough
def test_a_server_that_dies_in_the_middle_costs_no_job(embedded_box: Box, server: FaultyServer, tmp_path: Path) -> None:
    box = embedded_box
    texts = [f"say {letter} and {other}" for letter in "abcde" for other in "vwxyz"]
    batch = box.submit(*texts)
    server.faults.extend([None, Status(429, "busy", (("Retry-After", "0"),)), CUT, SILENT, None, DIE])
    worker = box.start_worker(**endpoint(server, tokenizer_folder(tmp_path)))
    wait_until(lambda: "this worker takes none until it is back" in worker.log, lambda: worker.log)
    server.start()
    box.wait_states(batch, succeeded=25)

    attempts = sorted(row.attempts for row in box.rows(batch))
    assert attempts[-1] == 2, "the job over which the server died has spent an attempt"
    assert attempts[:21] == [1] * 21, "only what the server computed when it died has spent an attempt"
    with box.client() as client:
        found = list(client.results(batch))
    assert [one.output_text for one in found] == [text[::-1] for text in texts]
    assert {one.device for one in found} == {f"vLLM 0.11.2 at {server.url}"}
    assert {(one.target_model, one.draft_model) for one in found} == {("served/model", None)}
    assert all(one.ttft_seconds is not None and one.acceptance_rate is None for one in found)
    assert box.result_count(batch) == 25
    assert worker.process.poll() is None
    assert "the server is back" in worker.log
    assert f"server    vLLM 0.11.2 at {server.url}" in worker.log
    assert KEY not in worker.log
    assert not any(text in worker.log for text in texts), "a prompt stands in the log"


def supervise(server: FaultyServer, worker: WorkerProcess, deaths: int) -> None:
    """Start the server again after each of so many deaths, once the worker has noticed."""
    for number in range(1, deaths + 1):
        wait_until(lambda n=number: worker.log.count("takes none until it is back") == n, lambda: worker.log)
        server.start()


@pytest.mark.thorough
def test_a_request_that_kills_the_server_each_time_ends_as_server_lost(
    embedded_box: Box, server: FaultyServer, tmp_path: Path
) -> None:
    box = embedded_box
    settings = endpoint(server, tokenizer_folder(tmp_path))
    poison = "kill it"
    server.deadly.append(ids_of(poison))
    batch = box.submit(*"abcde", poison, *"fghij")
    worker = box.start_worker(**settings)
    supervise(server, worker, 3)
    box.wait_states(batch, succeeded=10, failed=1)

    rows = box.rows(batch)
    (failed,) = [row for row in rows if row.state == "failed"]
    assert (failed.line, failed.error_code, failed.attempts) == (6, "server_lost", 3)
    assert "look at that server's log" in failed.error_message
    assert len(server.beside) == 3
    assert server.beside[-1] == 0, "the last time it is alone"
    assert all(row.attempts <= 3 for row in rows)
    assert worker.process.poll() is None
    assert poison not in worker.log
    server.deadly.clear()
    with box.client() as client:
        assert client.retry(batch) == 1
    box.wait_states(batch, succeeded=11)


@pytest.mark.thorough
def test_the_next_worker_knows_which_request_killed_the_server(
    embedded_box: Box, server: FaultyServer, tmp_path: Path
) -> None:
    box = embedded_box
    settings = endpoint(server, tokenizer_folder(tmp_path))
    poison = "kill it"
    server.deadly.append(ids_of(poison))
    batch = box.submit(poison)
    for attempt in (1, 2):
        first = box.start_worker(**settings)
        wait_until(lambda one=first: "takes none until it is back" in one.log, lambda one=first: one.log)
        wait_until(lambda n=attempt: box.rows(batch)[0].attempts == n, "the attempt is not counted")
        wait_until(lambda: box.states(batch) == {"queued": 1}, "the job is not given back")
        first.send(signal.SIGTERM)
        first.wait()
        server.start()
    worker = box.start_worker(**settings)
    supervise(server, worker, 1)
    box.wait_states(batch, failed=1)
    assert [row.error_code for row in box.rows(batch)] == ["server_lost"]
    assert len(server.beside) == 3


@pytest.mark.thorough
def test_lines_are_refused_by_name_and_the_others_go_on(
    embedded_box: Box, server: FaultyServer, tmp_path: Path
) -> None:
    box = embedded_box
    lines: list[dict[str, Any]] = [
        {"custom_id": "good", "prompt": "abc"},
        {"custom_id": "scored", "prompt": "abc", "prompt_logprobs": 1},
        {"custom_id": "refused", "prompt": "xyz"},
    ]
    box.start_worker(**endpoint(server, tokenizer_folder(tmp_path), max_batch_size="1"))
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    with box.client() as client:
        batch = client.submit(file).batch_id
        box.wait_states(batch, succeeded=1, failed=1)
        server.faults.append(Status(400, {"error": {"message": "too hot", "code": 400}}))
        other = client.submit(lines[2:]).batch_id
        box.wait_states(other, failed=1)
        failures = [
            one for each in (batch, other) for one in client.results(each, include_failed=True) if one.error_code
        ]
    assert {one.custom_id: one.error_code for one in failures} == {
        "scored": "invalid_request",
        "refused": "invalid_request",
    }
    assert "prompt_logprobs: vLLM cannot" in str(failures[0].error_message)
    assert "too hot" in str(failures[1].error_message)
