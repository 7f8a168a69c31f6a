"""What ``submit`` says when it is interrupted or loses its database is true: nobody submits a batch twice over it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.client.submission import SubmitStage
from helix_jobs.errors import UncertainSubmissionError
from helix_jobs.settings import Settings
from helix_jobs.storage.outage import outlast
from helix_jobs.storage.states import BatchState
from tests.integration.client_helpers import batch_count, prompts, rows
from tests.integration.cutting_proxy import CuttingProxy
from tests.redis_client import redis_client
from tests.worker_box import ROOT, make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helix_jobs.storage.database import Database
    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Submit:
    """A ``submit`` in a process of its own that reads a pipe, line by line as the test writes them."""

    def __init__(self, box: Box, *options: str) -> None:
        self.process = box.spawn(
            *(sys.executable, str(ROOT / "submit.py"), "submit", "-", *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def write(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.writelines(f"{json.dumps(item)}\n" for item in prompts(number))
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; exit code, standard output and standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_while_it_reads(embedded_box: Box, number: int) -> None:
    submit = Submit(embedded_box)
    submit.write(1500)
    with embedded_box.client() as client:
        wait_until(lambda: [status.stored for status in client.list()] == [1000], "nothing is stored")
        assert submit.end(number) == (130, "", "\nInterrupted; nothing was enqueued.\n")
        assert client.list() == []


@pytest.fixture
def box_with_redis(short_tmp: Path) -> Iterator[tuple[Box, int]]:
    """A box whose broker is a server of a test's own, and that server's process id."""
    server = EmbeddedBroker(short_tmp / "server")
    (short_tmp / "server").mkdir()
    server.start()
    with redis_client(server.url) as client:
        pid = client.info("server")["process_id"]
    yield make_box(short_tmp / "home", short_tmp, redis_url=server.url, database_url=None), pid
    os.kill(pid, signal.SIGCONT)
    assert server.stop()


@pytest.mark.thorough(fast=1)
@pytest.mark.redis
@pytest.mark.parametrize(("number", "options"), [(number, []) for number in SIGNALS] + [(signal.SIGINT, ["--json"])])
def test_interrupted_while_a_hanging_redis_is_told(
    box_with_redis: tuple[Box, int], number: int, options: list[str]
) -> None:
    box, redis = box_with_redis
    submit = Submit(box, *options)
    submit.write(1500)
    with box.client() as client:
        wait_until(lambda: [status.stored for status in client.list()] == [1000], "nothing is stored")
        os.kill(redis, signal.SIGSTOP)
        submit.end_input()
        wait_until(lambda: client.list()[0].total is not None, "the batch is not complete")
        (batch,) = client.list()
        code, out, err = submit.end(number)
        assert (code, batch.id in err, "is stored" in err, "nothing was enqueued" in err) == (130, True, True, False)
        if options:
            error = json.loads(out)["error"]
            assert (error["batch_id"], error["stored"], error["exit_code"]) == (batch.id, True, 130)
        else:
            assert out == f"{batch.id}\n"
        assert [(status.id, status.total) for status in client.list()] == [(batch.id, 1500)]


@pytest.fixture
def behind_a_proxy(postgres_database: Database, tmp_path: Path, request: pytest.FixtureRequest):
    """Settings that lead through a CuttingProxy made of the test's parameters, and the proxy."""
    proxy = CuttingProxy(postgres_database.url.render_as_string(hide_password=False), **request.param)
    url = proxy.url.render_as_string(hide_password=False)
    yield Settings(home=tmp_path / "home", redis_url=None, database_url=url), proxy
    proxy.close()


@pytest.mark.postgres
@pytest.mark.parametrize("behind_a_proxy", [{}], indirect=True)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_seal_whose_answer_is_lost_is_asked_for_again(behind_a_proxy, past_proxy: Settings, key: str | None) -> None:
    settings, proxy = behind_a_proxy
    with HelixClient(settings) as client:
        submission = client.submit(prompts(50), idempotency_key=key)
    assert proxy.num_cut == 1
    assert (submission.total, submission.reused) == (50, False)
    assert (len(rows(past_proxy)), batch_count(past_proxy)) == (50, 1)


@pytest.mark.postgres
@pytest.mark.parametrize("behind_a_proxy", [{"then_refuse": True}], indirect=True)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_database_gone_over_the_seal_is_no_denial(
    behind_a_proxy, past_proxy: Settings, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = behind_a_proxy
    monkeypatch.setattr("helix_jobs.client.submission.outlast", functools.partial(outlast, seconds=0.3))
    stages: list[tuple[SubmitStage, str]] = []
    with HelixClient(settings) as client, pytest.raises(UncertainSubmissionError) as raised:
        client.submit(prompts(50), idempotency_key=key, on_stage=lambda *stage: stages.append(stage))
    batch_id = raised.value.batch_id
    assert f"Whether batch {batch_id} is stored is uncertain" in str(raised.value)
    assert f"helix status {batch_id}" in str(raised.value)
    assert raised.value.exit_code == 3
    assert stages[-1] == (SubmitStage.SEALING, batch_id)
    with HelixClient(past_proxy) as client:
        assert client.status(batch_id).state is BatchState.QUEUED
        if key is not None:
            again = client.submit(prompts(50), idempotency_key=key)
            assert (again.batch_id, again.reused) == (batch_id, True)
    assert (len(rows(past_proxy)), batch_count(past_proxy)) == (50, 1)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("key", [None, "k"])
def test_an_interrupt_over_the_seal_asks_what_came_of_it(
    client: HelixClient, monkeypatch: pytest.MonkeyPatch, key: str | None, *, sealed: bool
) -> None:
    from helix_jobs.storage import batches

    seal_batch = batches.seal_batch
    stages: list[tuple[SubmitStage, str]] = []

    def interrupted(c, *arguments):
        if sealed:
            seal_batch(c, *arguments)
            c.commit()
        raise KeyboardInterrupt

    monkeypatch.setattr("helix_jobs.storage.batches.seal_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.submit(prompts(50), idempotency_key=key, on_stage=lambda *stage: stages.append(stage))
    found = client.list()
    assert stages[-1][0] is (SubmitStage.STORED if sealed else SubmitStage.READING)
    assert [status.total for status in found] == ([50] if sealed else [] if key is None else [None])
