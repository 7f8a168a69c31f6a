"""Postgres behind PgBouncer in transaction mode: a session is anybody's from one transaction to the next."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text

from helix_jobs.storage.database import Database
from helix_jobs.time_limits import TimeLimits
from tests.pgbouncer import PgBouncer
from tests.postgres_cluster import PostgresCluster
from tests.worker_box import Box, make_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="PgBouncer runs on POSIX"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    made = PostgresCluster()
    made.start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def pooler(cluster: PostgresCluster) -> Iterator[PgBouncer]:
    made = PgBouncer(cluster.port)
    yield made
    made.stop()


@pytest.fixture
def pooled_box(short_tmp: Path, empty_redis: str, cluster: PostgresCluster, pooler: PgBouncer) -> Iterator[Box]:
    with psycopg.connect(cluster.url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS pooled WITH (FORCE)")
        admin.execute("CREATE DATABASE pooled")
    box = make_box(short_tmp / "home", short_tmp, redis_url=empty_redis, database_url=pooler.url("pooled"))
    yield box
    box.close()


@pytest.mark.thorough
def test_batches_run_to_their_end_with_two_workers_and_many_clients(pooled_box: Box) -> None:
    upgraded = pooled_box.run(sys.executable, "submit.py", "db", "upgrade")
    assert (upgraded.returncode, upgraded.stderr) == (0, "")
    workers = [pooled_box.start_worker("--allow-shared-device", ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    with ThreadPoolExecutor(4) as clients:
        batches = list(clients.map(lambda n: pooled_box.submit(*[f"w{n}-{i} a b" for i in range(200)]), range(3)))
    for batch in batches:
        pooled_box.wait_states(batch, succeeded=200)
        assert {row.attempts for row in pooled_box.rows(batch)} == {1}
    for worker in workers:
        assert "Traceback" not in worker.log
        assert "writes wait" not in worker.log
    for command in (["status", batches[0]], ["results", batches[0]]):
        done = pooled_box.run(sys.executable, "submit.py", *command)
        assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_nothing_of_a_session_is_left_behind(pooled_box: Box, pooler: PgBouncer) -> None:
    """Whoever gets the session next finds it as it was."""
    assert pooled_box.run(sys.executable, "submit.py", "db", "upgrade").returncode == 0
    database = Database(pooler.url("pooled"), TimeLimits(statement=7.0))
    for _ in range(12):
        with database.read() as c:
            c.execute(text("SELECT 1"))
        with database.write() as c:
            c.execute(text("SELECT 1"))
    database.dispose()
    kept = ("statement_timeout", "idle_in_transaction_session_timeout", "default_transaction_isolation")
    with psycopg.connect(
        pooler.url("pooled").replace("+psycopg", ""), autocommit=True, prepare_threshold=None
    ) as other:
        for _ in range(6):
            assert [other.execute(f"SHOW {name}").fetchone()[0] for name in kept] == ["0", "0", "read committed"]  # type: ignore[index]
            assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            assert other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)
