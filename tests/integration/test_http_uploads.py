"""Uploads that break off, are too large, or come while a server dies: nothing is half there, and nothing twice."""

from __future__ import annotations

import signal
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest
from sqlalchemy import func, select, update

from helix_jobs.api.batch_object import error_file_id
from helix_jobs.bench.process_memory import peak_memory
from helix_jobs.storage.api_files import BROKEN_OFF
from helix_jobs.storage.schema import api_batches, api_files, batches, jobs
from tests.integration.batch_files import CHAT, as_file, counts, create, line, many_lines, sdk, upload, wait_status
from tests.integration.http_server import asking, server_process, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.worker_box import Box

NOTHING = {"api_batches": 0, "api_file_parts": 0, "api_files": 0, "batches": 0, "jobs": 0}
LINES = 20_000


def send_half(address: str, content: bytes) -> socket.socket:
    """Begin an upload, and stop in the middle of its file."""
    place = urlsplit(address)
    assert place.hostname is not None
    connection = socket.create_connection((place.hostname, place.port or 0))
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + content
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {2 * len(form)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    connection.sendall(head.encode() + form)
    return connection


def test_an_upload_that_breaks_off_leaves_nothing(box: Box) -> None:
    with serving(box) as address:
        connection = send_half(address, b"x" * 3_500_000)
        wait_until(lambda: counts(box)["api_file_parts"] == 3, "three parts are stored")
        with sdk(address) as client:
            assert list(client.files.list()) == [], "half a file is not there"
        connection.close()
        wait_until(lambda: counts(box) == NOTHING, lambda: f"nothing is left, there is {counts(box)}")


@pytest.mark.thorough
def test_what_a_dead_server_left_of_an_upload_goes(box: Box) -> None:
    with server_process(box) as (process, address), send_half(address, b"x" * 2_500_000):
        wait_until(lambda: counts(box)["api_file_parts"] == 2, "two parts are stored")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(box):
        assert counts(box)["api_file_parts"] == 2, "it might be another server's, and go on"
    with box.own_database.write() as c:
        c.execute(update(api_files).values(touched_at=datetime.now(UTC) - 2 * BROKEN_OFF))
    with serving(box):
        wait_until(lambda: counts(box) == NOTHING, lambda: f"nothing is left, there is {counts(box)}")


def test_a_form_that_is_refused_at_its_end_leaves_nothing(box: Box) -> None:
    with serving(box) as address, asking(address) as http:
        for fields in ({"purpose": "vision"}, {}, {"purpose": "batch", "expires_after[seconds]": "7"}):
            answer = http.post("/v1/files", files={"file": ("a", b"x" * 1_500_000)}, data=fields)
            assert answer.status_code == 400, answer.text
        assert http.post("/v1/files", json={"purpose": "batch"}).status_code == 415
        assert counts(box) == NOTHING


def test_a_file_beyond_the_limit_is_refused(embedded_box: Box) -> None:
    box = embedded_box
    with serving(box, max_upload_mb=2) as address, asking(address) as http:
        with sdk(address) as client:
            assert upload(client, b"x" * 2_000_000).bytes == 2_000_000
            with pytest.raises(openai.APIStatusError, match="HELIX_MAX_UPLOAD_MB") as raised:
                upload(client, b"x" * 2_000_001)
            assert raised.value.status_code == 413

        def pieces(size: int) -> Iterator[bytes]:
            """A body without a length."""
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(size // 100_000):
                yield b"x" * 100_000
            yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        assert http.post("/v1/files", content=pieces(1_000_000), headers=headers).status_code == 200
        assert http.post("/v1/files", content=pieces(2_100_000), headers=headers).status_code == 413
        assert http.post("/v1/completions", content=b" " * 5_500_000, headers=headers).status_code == 413
    assert counts(box)["api_files"] == 2


def stored_lines(box: Box) -> int:
    with box.read() as c:
        return c.execute(select(func.count()).select_from(jobs)).scalar_one()


def check_every_line_once(box: Box, count: int) -> None:
    with box.read() as c:
        [total] = c.execute(select(batches.c.total)).scalars()
        rows = c.execute(select(func.count(), func.count(jobs.c.line.distinct()), func.max(jobs.c.line))).one()
    assert (total, *rows) == (count,) * 4


@pytest.mark.thorough
def test_another_server_finishes_what_a_killed_one_has_begun(box: Box) -> None:
    with server_process(box) as (process, address), sdk(address) as client:
        batch = create(client, many_lines(LINES))
        wait_until(lambda: stored_lines(box) >= 2000, "some lines are stored")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert stored_lines(box) < LINES, "it was killed in the middle"
    with serving(box) as address, sdk(address) as client:
        assert client.batches.retrieve(batch.id).status == "validating"
        with box.own_database.write() as c:  # the dead server's claim has run out
            c.execute(update(api_batches).values(due_at=datetime.now(UTC)))
        found = wait_status(client, batch.id, "in_progress", "failed")
        assert found.status == "in_progress"
        assert found.request_counts is not None
        assert found.request_counts.total == LINES
    check_every_line_once(box, LINES)


@pytest.mark.thorough
def test_a_server_that_stops_hands_its_batch_over_at_once(box: Box) -> None:
    with serving(box) as address, sdk(address) as client:
        batch = create(client, many_lines(LINES))
        wait_until(lambda: stored_lines(box) >= 2000, "some lines are stored")
    assert stored_lines(box) < LINES, "it was stopped in the middle"
    with serving(box) as address, sdk(address) as client:
        assert wait_status(client, batch.id, "in_progress", "failed").status == "in_progress"
    check_every_line_once(box, LINES)


@pytest.mark.thorough(fast=1)
def test_a_cancel_while_the_lines_are_read(box: Box) -> None:
    with serving(box) as address, sdk(address) as client:
        batch = create(client, many_lines(LINES))
        wait_until(lambda: stored_lines(box) >= 2000, "some lines are stored")
        with pytest.raises(openai.ConflictError, match="still reads"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        batch = wait_status(client, batch.id, "cancelled")
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        client.files.delete(batch.input_file_id)
    assert counts(box) == NOTHING | {"api_batches": 1}


@pytest.mark.thorough(fast=1)
def test_two_servers_share_the_work(box: Box) -> None:
    with serving(box) as first, serving(box) as second, sdk(first) as client, sdk(second) as other:
        made = [create(client if number % 2 else other, many_lines(50)).id for number in range(12)]
        for batch_id in made:
            assert wait_status(client, batch_id, "in_progress", "failed").status == "in_progress"
    assert counts(box)["jobs"] == 12 * 50


def read_and_remove(http: httpx2.Client, file_id: str, remove: Callable[[], object]) -> None:
    """Read a file's content to its end, and have it removed once its first bytes have come."""
    with http.stream("GET", f"/v1/files/{file_id}/content") as answer:
        for place, _ in enumerate(answer.iter_raw(1000)):
            if not place:
                remove()


@pytest.mark.thorough
def test_a_file_that_goes_while_it_is_read_looks_no_shorter(box: Box) -> None:
    # More than the buffers between server and client hold.
    lines = [{**line(number), "custom_id": f"{number:0500}"} for number in range(20_000)]
    with serving(box) as address, sdk(address) as client, asking(address) as http, box.client() as own:
        file = upload(client, b"x" * 30_000_000)
        with pytest.raises(httpx2.RemoteProtocolError):
            read_and_remove(http, file.id, lambda: client.files.delete(file.id))
        batch = wait_status(client, create(client, as_file(lines)).id, "in_progress")
        client.batches.cancel(batch.id)
        batch = wait_status(client, batch.id, "cancelled")
        with pytest.raises(httpx2.RemoteProtocolError):
            read_and_remove(http, str(batch.error_file_id), lambda: own.purge(own.list()[0].id))


@pytest.mark.redis
@pytest.mark.postgres
def test_a_batch_waits_for_its_broker(services_box: Box) -> None:
    box = services_box
    with serving(box, redis_url="redis://127.0.0.1:1/0") as address, sdk(address) as client:
        batch = create(client, many_lines(3))
        wait_until(lambda: due_in(box) > timedelta(seconds=5), "it was tried, and is tried again later")
        assert client.batches.retrieve(batch.id).status == "validating"
    with box.own_database.write() as c:
        c.execute(update(api_batches).values(due_at=datetime.now(UTC)))
    with serving(box) as address, sdk(address) as client:
        wait_status(client, batch.id, "in_progress")
    check_every_line_once(box, 3)


def due_in(box: Box) -> timedelta:
    with box.read() as c:
        [due_at] = c.execute(select(api_batches.c.due_at)).scalars()
    return due_at - datetime.now(UTC) if due_at < datetime.now(UTC) + timedelta(seconds=15) else timedelta(0)


def long_lines(count: int) -> bytes:
    """Lines of two kilobytes."""
    return as_file([line(number, "some words " * 185) for number in range(count)])


def peak_after_all(client: openai.OpenAI, content: bytes, server: psutil.Process) -> int:
    """The server's most resident memory once it has done everything that can be done with a file."""
    file = upload(client, content)
    with client.files.with_streaming_response.content(file.id) as answer:
        assert sum(len(piece) for piece in answer.iter_bytes(1 << 20)) == len(content)
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress", "every line is read", 600)
    client.batches.cancel(batch.id)
    wait_until(lambda: client.batches.retrieve(batch.id).status == "cancelled", "every job is cancelled", 600)
    with client.files.with_streaming_response.content(error_file_id(batch.id)) as answer:
        assert sum(1 for _ in answer.iter_lines()) == content.count(b"\n")
    client.files.delete(file.id)
    return peak_memory(server)


@pytest.mark.slow
def test_the_memory_of_a_server_stays_flat(embedded_box: Box) -> None:
    small, large = long_lines(30_000), long_lines(95_000)
    assert (len(small) < 66_000_000, len(large) > 200_000_000) == (True, True)
    with server_process(embedded_box) as (process, address), sdk(address) as client:
        server = psutil.Process(process.pid)
        # Fills SQLite's page cache, 33 MB for each of the connections.
        before = peak_after_all(client, small, server)
        after = peak_after_all(client, large, server)
    assert after - before < 30e6, f"{len(large):,} bytes: from {before:,} to {after:,}"
