"""Installations to break, and the table of what was seen."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.fork_server import ForkServer
from tests.acceptance.faults.installation import Installation, make_installation
from tests.acceptance.faults.redis_server import RedisServer
from tests.acceptance.faults.table import Row, markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helix_jobs.storage.database import Database

_ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", metavar="FILE", help="write the table of fault scenarios as Markdown")
    parser.addoption("--soak-minutes", type=float, default=30.0, metavar="N", help="how long the soak goes on")
    parser.addoption("--chaos-minutes", type=float, default=10.0, metavar="N", help="how long the chaos proxies go on")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """The table's rows."""
    return pytestconfig.stash.setdefault(_ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(_ROWS, [])
    if not found:
        return
    text = markdown(found)
    terminalreporter.section("fault scenarios")
    terminalreporter.write(text)
    file = config.getoption("--faults-table", default=None)
    if file:
        Path(file).write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Installation]]:
    """Makes an installation on ``sqlite`` or ``postgres``; closes it afterwards."""
    if sys.platform == "win32":
        pytest.skip("no embedded server on Windows")
    # Short enough for sockets, which pytest's own are not on every system.
    directory = Path(tempfile.mkdtemp(prefix="hxf-"))
    made: list[Installation] = []

    def build(database: str, *, quick: bool) -> Installation:
        redis = RedisServer(directory)
        redis.start()
        url = None
        if database == "postgres":
            found: Database = request.getfixturevalue("postgres_database")
            url = found.url.render_as_string(hide_password=False)
        server = request.getfixturevalue("fork_server") if quick else None
        made.append(
            make_installation(
                directory,
                redis,
                database_url=url,
                fork_server=server,
                find_demo_home=lambda: request.getfixturevalue("demo_home"),
            )
        )
        return made[-1]

    yield build
    for installation in made:
        installation.close()
    shutil.rmtree(directory, ignore_errors=True)
