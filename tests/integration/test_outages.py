"""Commands outlast a Postgres that is being started again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.settings import Settings
from helix_jobs.storage.outage import outlast
from tests.integration.client_helpers import batch_count, prompts, rows, work
from tests.integration.cutting_proxy import CuttingProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus

AWAY_SECONDS = 0.6


@pytest.fixture
def proxy(past_proxy: Settings) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(past_proxy.database_url)
    yield proxy
    proxy.close()


@pytest.fixture
def client(past_proxy: Settings, proxy: CuttingProxy) -> Iterator[HelixClient]:
    url = proxy.url.render_as_string(hide_password=False)
    with HelixClient(Settings(home=past_proxy.home, redis_url=None, database_url=url)) as client:
        yield client


def restart(proxy: CuttingProxy) -> None:
    proxy.go_away()
    threading.Timer(AWAY_SECONDS, proxy.come_back).start()


@pytest.mark.postgres
def test_waiting_goes_on_after_a_restart(client: HelixClient, past_proxy: Settings, proxy: CuttingProxy) -> None:
    batch_id = client.submit(prompts(3)).batch_id
    seen: list[BatchStatus] = []

    def look(status: BatchStatus) -> None:
        seen.append(status)
        if len(seen) == 1:
            restart(proxy)
            assert work(past_proxy) == 3

    final = client.wait(batch_id, on_update=look)
    assert final.done
    assert len(seen) == 2


@pytest.mark.postgres
@pytest.mark.parametrize("key", [None, "k"])
def test_submitting_goes_on_after_a_restart(
    client: HelixClient, past_proxy: Settings, proxy: CuttingProxy, key: str | None
) -> None:
    def lines() -> Iterator[dict]:
        for number, item in enumerate(prompts(2600)):
            if number == 1001:
                restart(proxy)
            yield item

    assert client.submit(lines(), idempotency_key=key).total == 2600
    assert [row.line for row in rows(past_proxy)] == list(range(1, 2601))
    assert batch_count(past_proxy) == 1


@pytest.mark.postgres
def test_an_outage_that_lasts_ends_the_command(client: HelixClient, proxy: CuttingProxy) -> None:
    client.list()
    proxy.go_away()
    with pytest.raises(DatabaseUnreachableError, match="does not answer"):
        outlast(client._database(), client.list, seconds=0.1)


def test_what_ails_a_sqlite_file_is_told_at_once(sqlite_database: Database) -> None:
    def full() -> None:
        raise DatabaseUnreachableError("the disk is full")

    with pytest.raises(DatabaseUnreachableError, match="the disk is full"):
        outlast(sqlite_database, full, seconds=3600)
