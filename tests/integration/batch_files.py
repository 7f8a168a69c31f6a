"""Files of OpenAI Batch lines, clients that upload them, and what the tables then hold."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
from sqlalchemy import func, select

from helix_jobs.storage.schema import api_batches, api_file_parts, api_files, batches, jobs
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker_box import Box

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


def line(number: int, text: str | None = None, url: str = CHAT, **body: Any) -> dict[str, Any]:
    words = f"word {number}" if text is None else text
    asked = {"messages": [{"role": "user", "content": words}]} if url == CHAT else {"prompt": words}
    return {
        "custom_id": f"c{number}",
        "method": "POST",
        "url": url,
        "body": {"model": "m", "max_tokens": 4, **asked, **body},
    }


def as_file(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def many_lines(count: int) -> bytes:
    return as_file([line(number) for number in range(count)])


@contextmanager
def sdk(address: str, key: str = "unused-but-asked-for") -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120) as client:
        yield client


def upload(client: openai.OpenAI, content: bytes, name: str = "lines.jsonl", **fields: Any) -> openai.types.FileObject:
    return client.files.create(file=(name, content), purpose="batch", **fields)


def create(client: openai.OpenAI, content: bytes, **fields: Any) -> openai.types.Batch:
    values: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **fields}
    return client.batches.create(input_file_id=upload(client, content).id, **values)


def wait_status(client: openai.OpenAI, batch_id: str, *wanted: str) -> openai.types.Batch:
    """The batch once its status is one of these."""
    found: list[openai.types.Batch] = []

    def is_there() -> bool:
        found[:] = [client.batches.retrieve(batch_id)]
        return found[0].status in wanted

    wait_until(is_there, lambda: f"{wanted}, is {found[0]}")
    return found[0]


def content_lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def counts(box: Box) -> dict[str, int]:
    """Rows of each table that a batch over HTTP fills."""
    with box.read() as c:
        tables = (api_batches, api_file_parts, api_files, batches, jobs)
        return {table.name: c.execute(select(func.count()).select_from(table)).scalar_one() for table in tables}
