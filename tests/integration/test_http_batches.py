"""Files and batches over HTTP, asked for by OpenAI's own client, with real servers, workers, brokers and databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import openai
import pytest
from sqlalchemy import update

from helix_jobs.storage.schema import api_batches
from tests.integration.batch_files import (
    CHAT,
    as_file,
    content_lines,
    counts,
    create,
    line,
    many_lines,
    sdk,
    upload,
    wait_status,
)
from tests.integration.http_server import asking, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"
# Others than the server have changed something: what it read a moment ago does not do.
NOW = {"Cache-Control": "no-cache"}


def set_back(box: Box, **columns: object) -> None:
    """Let time pass for every batch: change its times, and have a server look at it."""
    with box.own_database.write() as c:
        c.execute(update(api_batches).values(due_at=datetime.now(UTC), **columns))


@pytest.mark.thorough(fast=1)
def test_a_batch_from_its_file_to_its_answers(box: Box) -> None:
    box.start_worker()
    lines = [line(number) for number in range(40)] + [line(40, "word " * 200_000), line(41, n=2, temperature=1)]
    with serving(box) as address, sdk(address) as client:
        file = upload(client, as_file(lines), "night.jsonl")
        assert client.files.content(file.id).content == as_file(lines)
        assert (file.bytes, file.filename) == (len(as_file(lines)), "night.jsonl")
        created = client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"night": "1"}
        )
        assert (created.status, created.metadata) == ("validating", {"night": "1"})
        batch = wait_status(client, created.id, "completed", "failed")
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total) == (41, 1, 42)
        answers = content_lines(client, batch.output_file_id)
        assert [answer["custom_id"] for answer in answers] == [f"c{number}" for number in (*range(40), 41)]
        assert answers[7]["response"]["body"]["choices"][0]["message"]["content"] == "word 7"
        assert len(answers[-1]["response"]["body"]["choices"]) == 2
        [refused] = content_lines(client, batch.error_file_id)
        assert refused["custom_id"] == "c40"
        assert refused["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert batch.usage is not None
        assert batch.usage.output_tokens == sum(a["response"]["body"]["usage"]["completion_tokens"] for a in answers)
        assert batch.output_file_id is not None
        output = client.files.retrieve(batch.output_file_id)
        assert (output.bytes, output.purpose) == (len(client.files.content(output.id).content), "batch_output")
        with pytest.raises(openai.ConflictError, match="output_expires_after"):
            client.files.delete(output.id)
        with box.client() as own:
            [seen] = own.list()
            assert (seen.name, seen.source, seen.total) == (batch.id, "night.jsonl", 42)
            assert len(list(own.results(seen.id))) == 42
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        assert client.batches.retrieve(batch.id).status == "completed"
    assert counts(box) == {"api_batches": 1, "api_file_parts": 0, "api_files": 0, "batches": 1, "jobs": 42}


def test_bad_lines_fail_the_batch_and_leave_nothing(box: Box) -> None:
    bad = [
        line(1),
        line(2, url="/v1/completions"),
        {"prompt": "a line of Helix's own"},
        line(4, temperature=-1, max_token=3),
        line(1),
    ]
    with serving(box) as address, sdk(address) as client:
        batch = wait_status(client, create(client, as_file(bad)).id, "failed", "in_progress")
        assert batch.errors is not None
        assert batch.errors.data is not None
        found = {(error.line, error.param) for error in batch.errors.data}
        assert found == {(2, "url"), (3, "url"), (4, "body.temperature"), (4, "body.max_token"), (5, "custom_id")}
        assert all(error.message for error in batch.errors.data)
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        for content, words in ((b"\n \n", "no prompts"), (b"\x1f\x8b\x08whatever", "gzip"), (b"PAR1....", "Parquet")):
            failed = wait_status(client, create(client, content).id, "failed", "in_progress")
            assert failed.errors is not None
            assert failed.errors.data is not None
            assert words in (failed.errors.data[0].message or "")
        with pytest.raises(openai.ConflictError, match="is failed"):
            client.batches.cancel(batch.id)
    assert counts(box) | {"api_file_parts": 0, "api_files": 0} == {
        "api_batches": 4,
        "api_file_parts": 0,
        "api_files": 0,
        "batches": 0,
        "jobs": 0,
    }


def test_a_request_that_is_wrong_is_refused_at_once(box: Box) -> None:
    with serving(box) as address, sdk(address) as client:
        file = upload(client, many_lines(1))
        for fields, error, param in (
            ({"endpoint": "/v1/embeddings"}, openai.BadRequestError, "endpoint"),
            ({"completion_window": "soon"}, openai.BadRequestError, "completion_window"),
            ({"extra_body": {"priority": 3}}, openai.BadRequestError, "priority"),
            ({"input_file_id": "file-none"}, openai.NotFoundError, "input_file_id"),
        ):
            values = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **fields}
            with pytest.raises(error) as raised:
                client.batches.create(**values)
            assert raised.value.param == param
        with pytest.raises(openai.BadRequestError, match="batches alone") as raised:
            client.files.create(file=("a.txt", b"x"), purpose="vision")
        assert raised.value.param == "purpose"
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.batches.list(limit=101)
        for missing in ("batch_none", "file-output-none", "file-\0", "batch_\0", "\ud7ff", "x" * 500):
            with pytest.raises(openai.NotFoundError):
                client.batches.retrieve(missing)
            with pytest.raises(openai.NotFoundError):
                client.files.content(missing)
            with pytest.raises(openai.NotFoundError):
                client.files.list(after=missing)
            with pytest.raises(openai.NotFoundError):
                client.batches.list(after=missing)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.list(purpose="\0")
    assert counts(box)["api_batches"] == 0


def test_two_keys_do_not_see_each_other(box: Box) -> None:
    box.start_worker()
    with (
        serving(box, api_keys=f"{KEY},{OTHER}") as address,
        sdk(address, KEY) as mine,
        sdk(address, OTHER) as yours,
        sdk(address, "a-key-that-is-not-known") as strangers,
    ):
        batch = wait_status(mine, create(mine, many_lines(3)).id, "completed")
        assert [found.id for found in mine.batches.list()] == [batch.id]
        assert list(yours.batches.list()) == []
        assert list(yours.files.list()) == []
        assert batch.output_file_id is not None
        for ask in (
            lambda: yours.batches.retrieve(batch.id),
            lambda: yours.batches.cancel(batch.id),
            lambda: yours.files.retrieve(batch.input_file_id),
            lambda: yours.files.content(batch.input_file_id),
            lambda: yours.files.delete(batch.input_file_id),
            lambda: yours.files.retrieve(str(batch.output_file_id)),
            lambda: yours.files.content(str(batch.output_file_id)),
            lambda: yours.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        with pytest.raises(openai.AuthenticationError):
            strangers.files.list()
        assert len(content_lines(mine, batch.output_file_id)) == 3


def test_a_cancel_while_it_runs(box: Box) -> None:
    with serving(box) as address, sdk(address) as client:
        batch = wait_status(client, create(client, many_lines(30)).id, "in_progress")
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        batch = wait_status(client, batch.id, "cancelled")
        assert batch.output_file_id is None
        found = content_lines(client, batch.error_file_id)
        assert {answer["error"]["code"] for answer in found} == {"batch_cancelled"}
        assert len(found) == 30
        assert client.batches.cancel(batch.id).status == "cancelled", "twice does no harm"


def test_commands_act_on_the_same_batch(box: Box) -> None:
    with serving(box) as address, sdk(address) as client, box.client() as own:
        batch = wait_status(client, create(client, many_lines(5)).id, "in_progress")
        assert own.cancel(own.list()[0].id) == 5
        assert wait_status(client, batch.id, "cancelled").cancelled_at is not None
        assert own.retry(own.list()[0].id) == 5
        box.start_worker()
        assert len(content_lines(client, wait_status(client, batch.id, "completed").output_file_id)) == 5
        assert own.purge(own.list()[0].id).batches == 1
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(batch.id, extra_headers=NOW)
        assert list(client.batches.list()) == []


@pytest.mark.thorough(fast=1)
def test_a_window_that_ends(box: Box) -> None:
    with serving(box) as address, sdk(address) as client:
        batch = wait_status(client, create(client, many_lines(7), completion_window="1h").id, "in_progress")
        assert batch.expires_at == batch.created_at + 3600
        set_back(box, expires_at=datetime.now(UTC))
        batch = wait_status(client, batch.id, "expired")
        assert batch.expired_at is not None
        found = content_lines(client, batch.error_file_id)
        assert [answer["error"]["code"] for answer in found] == ["batch_expired"] * 7


@pytest.mark.thorough(fast=1)
def test_output_that_expires_goes_with_its_rows(box: Box) -> None:
    box.start_worker()
    policy = {"anchor": "created_at", "seconds": 3600}
    with serving(box) as address, sdk(address) as client:
        batch = create(client, many_lines(4), output_expires_after=policy)
        batch = wait_status(client, batch.id, "completed")
        assert batch.completed_at is not None
        assert client.files.retrieve(str(batch.output_file_id)).expires_at == batch.completed_at + 3600
        set_back(box)
        assert client.batches.retrieve(batch.id, extra_headers=NOW).status == "completed", "an hour is not over"
        set_back(box, output_expires_after=0)
        wait_until(lambda: counts(box)["jobs"] == 0, "the rows are removed")
        wait_until(lambda: counts(box)["api_batches"] == 0, "the batch is removed")
        with pytest.raises(openai.NotFoundError):
            client.files.content(str(batch.output_file_id))


def test_an_idempotency_key_creates_one_batch(embedded_box: Box) -> None:
    with serving(embedded_box) as address, sdk(address) as client:
        file = upload(client, many_lines(2))
        same = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        headers = {"Idempotency-Key": "night-1"}
        first = client.batches.create(**same, extra_headers=headers)
        client.batches.cancel(first.id)
        wait_status(client, first.id, "cancelled")
        client.files.delete(file.id)
        assert client.batches.create(**same, extra_headers=headers).id == first.id, "also without its file"
        with pytest.raises(openai.ConflictError):
            client.batches.create(**same, metadata={"a": "b"}, extra_headers=headers)
    assert counts(embedded_box)["api_batches"] == 1


def test_lists_are_read_page_by_page(embedded_box: Box) -> None:
    with serving(embedded_box) as address, sdk(address) as client:
        files = [upload(client, many_lines(1), f"{number}.jsonl") for number in range(5)]
        ids = [file.id for file in files]
        assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
        assert client.files.list(limit=2).has_more
        assert not client.files.list(limit=5).has_more
        assert list(client.files.list(purpose="vision")) == []
        with pytest.raises(openai.NotFoundError, match="after"):
            client.files.list(after="file-none")
        made = [create(client, many_lines(1)).id for _ in range(5)]
        assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]


def test_answers_come_while_the_batch_runs(box: Box) -> None:
    box.start_worker(fake_hang="never")
    with serving(box) as address, sdk(address) as client:
        lines = [line(number) for number in range(8)] + [line(8, "this never ends")]
        batch = create(client, as_file(lines))
        wait_until(lambda: len(_so_far(client, batch.id)) == 8, "eight answers are there")
        assert client.batches.retrieve(batch.id).status == "in_progress"
        client.batches.cancel(batch.id)
        batch = wait_status(client, batch.id, "cancelled")
        assert len(content_lines(client, batch.output_file_id)) == 8
        assert [answer["custom_id"] for answer in content_lines(client, batch.error_file_id)] == ["c8"]


def _so_far(client: openai.OpenAI, batch_id: str) -> list[object]:
    output = client.batches.retrieve(batch_id).output_file_id
    return [] if output is None else list(content_lines(client, output))


def test_hostile_names_are_only_names(embedded_box: Box) -> None:
    with serving(embedded_box) as address, sdk(address) as client:
        for given, kept in (
            ("../../../etc/passwd", "passwd"),
            ("a\r\nX-Evil: 1.jsonl", "a%0D%0AX-Evil: 1.jsonl"),
            ('"; filename="b.jsonl', "%22; filename=%22b.jsonl"),
            ("\u202e\u65e5.jsonl", "_\u65e5.jsonl"),
        ):
            file = upload(client, b"x\n", given)
            assert file.filename == kept
            with asking(address) as http:
                answer = http.get(f"/v1/files/{file.id}/content")
                assert answer.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "X-Evil" not in answer.headers


def test_a_file_expires(embedded_box: Box) -> None:
    with serving(embedded_box) as address, sdk(address) as client:
        policy = {"anchor": "created_at", "seconds": 3600}
        file = upload(client, many_lines(1), expires_after=policy)
        assert file.expires_at is not None
        assert timedelta(seconds=file.expires_at - file.created_at) == timedelta(hours=1)
        with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds"):
            upload(client, many_lines(1), expires_after={"anchor": "created_at", "seconds": 5})
    assert counts(embedded_box)["api_files"] == 1
