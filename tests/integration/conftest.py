"""Real parts: a Redis-compatible server, Postgres, worker processes with the fake engine, and a client."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.broker.publisher import EmbeddedBroker, ping
from helix_jobs.settings import Settings
from tests.acceptance.faults.fork_server import ForkServer
from tests.acceptance.faults.plan import Plan
from tests.integration.chromium import running_browser
from tests.worker_box import Box, flush, make_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from helix_jobs.storage.database import Database
    from tests.acceptance.faults.fork_server import ForkedProcess
    from tests.worker_box import StartForked


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server of our own; HELIX_TEST_REDIS_URL names another one, whose contents are lost."""
    given = os.environ.get("HELIX_TEST_REDIS_URL")
    if given:
        ping(given)
        yield given
        return
    if sys.platform == "win32":
        pytest.skip("no embedded server on Windows; set HELIX_TEST_REDIS_URL")
    with tempfile.TemporaryDirectory(prefix="helix-redis-") as home:
        server = EmbeddedBroker(Path(home))
        server.start()
        yield server.url
        assert server.stop()


@pytest.fixture
def empty_redis(redis_url: str) -> str:
    """The server without contents."""
    flush(redis_url)
    return redis_url


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a path short enough for sockets, which pytest's is not on every system."""
    path = Path(tempfile.mkdtemp(prefix="hx-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def start_forked() -> Iterator[StartForked]:
    """Starts workers in a tenth of the processor time that a fresh interpreter takes."""
    server = ForkServer()

    def start(arguments: list[str], environment: dict[str, str], directory: Path, log: Path) -> ForkedProcess:
        return server.start(Plan(), "worker", arguments, environment=environment, directory=directory, log=log)

    yield start
    server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a file; each opens tabs of its own.

    Not for the whole run: Playwright's event loop is this thread's as long as it is there, and other files' tests run
    loops of their own.
    """
    with running_browser() as found:
        yield found


@pytest.fixture
def embedded_box(short_tmp: Path, start_forked: StartForked) -> Iterator[Box]:
    """SQLite and the embedded broker: what a newcomer has."""
    if sys.platform == "win32":
        pytest.skip("no embedded broker on Windows")
    box = make_box(short_tmp / "home", short_tmp, redis_url=None, database_url=None, start_forked=start_forked)
    yield box
    box.close()


@pytest.fixture
def services_box(
    short_tmp: Path, empty_redis: str, postgres_database: Database, start_forked: StartForked
) -> Iterator[Box]:
    """Postgres and a Redis server."""
    url = postgres_database.url.render_as_string(hide_password=False)
    box = make_box(short_tmp / "home", short_tmp, redis_url=empty_redis, database_url=url, start_forked=start_forked)
    yield box
    box.close()


@pytest.fixture(
    params=[
        pytest.param("embedded_box", id="sqlite-embedded"),
        pytest.param("services_box", id="postgres-redis", marks=[pytest.mark.postgres, pytest.mark.redis]),
    ]
)
def box(request: pytest.FixtureRequest) -> Box:
    """Each of the two installations in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def helix(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty Helix without a broker."""
    home = tmp_path / "home"
    url = f"sqlite:///{home / 'helix.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_database").url.render_as_string(hide_password=False)
    return Settings(home=home, redis_url=None, database_url=url)


@pytest.fixture
def past_proxy(postgres_database: Database, tmp_path: Path) -> Settings:
    """The way to a Postgres database that does not lead through the test's proxy."""
    url = postgres_database.url.render_as_string(hide_password=False)
    return Settings(home=tmp_path / "home", redis_url=None, database_url=url)


@pytest.fixture
def client(helix: Settings) -> Iterator[HelixClient]:
    with HelixClient(helix) as opened:
        yield opened
