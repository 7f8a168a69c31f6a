"""A broker that takes no message keeps no request waiting, and one that is silent is noticed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from helix_jobs.api import outbox
from helix_jobs.api.outbox import Outbox
from helix_jobs.api.problems import Problem
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database
from tests.migrated_sqlite import lay_database
from tests.worker_box import comes_true, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    lay_database(tmp_path / "helix.db")
    made = Database(settings(tmp_path, None).database_url)
    yield made
    made.dispose()


def settings(home: Path, redis_url: str | None) -> Settings:
    return Settings(home=home, redis_url=redis_url, database_url=f"sqlite:///{home / 'helix.db'}")


def refuses(made: Outbox) -> bool:
    try:
        made.require_broker()
    except Problem as problem:
        return (problem.status, problem.code) == (503, "broker_unreachable")
    return False


def test_requests_are_refused_while_the_broker_is_silent(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.1)
    silent = socket.create_server(("127.0.0.1", 0))  # it takes connections, and never answers
    url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
    made = Outbox(settings(tmp_path, url), database)
    try:
        assert not refuses(made)
        made.send(1)
        wait_until(lambda: refuses(made), "its silence is noticed")
        silent.close()
        wait_until(lambda: not refuses(made), "a broker that refuses at once is not silent")
    finally:
        silent.close()
        made.close()


def test_an_absent_broker_refuses_no_request_and_is_told_once_for_all(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 30.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
    made = Outbox(settings(tmp_path, url), database)
    try:
        made.send(1)
        wait_until(lambda: "a worker publishes them" in caplog.text, "the failure is logged")
        assert not refuses(made)
    finally:
        made.close()


def test_without_a_broker_of_its_own_nothing_is_sent(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 30.0)
    made = Outbox(settings(tmp_path, None), database)
    made.send(1)
    made.close(timeout=20)
    assert not caplog.text
    assert not comes_true(lambda: refuses(made), 0)
