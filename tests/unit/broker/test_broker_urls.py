from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from kombu.connection import Connection

from helix_jobs.broker.celery.app import celery_settings, concurrency
from helix_jobs.broker.embedded import EmbeddedBroker, Presence, socket_url
from helix_jobs.broker.faults import broker_errors
from helix_jobs.broker.messages import job_id_of
from helix_jobs.broker.publisher import QueueNames, broker_url, message_priority, transport_options
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import Settings

NAMES = QueueNames("one")


def settings(redis_url: str | None, home: str = "/home/someone/.helix", **more: object) -> Settings:
    return Settings(home=Path(home), redis_url=redis_url, database_url="sqlite:///x", **more)


def test_a_given_url_wins_over_the_embedded_broker() -> None:
    assert broker_url(settings("redis://host/1")) == "redis://host/1"


@pytest.mark.skipif(sys.platform == "win32", reason="no embedded broker")
def test_the_embedded_brokers_url_is_quoted() -> None:
    url = broker_url(settings(None, "/srv/my home"))
    assert url == "redis+socket:///srv/my%20home/broker/broker.sock"
    assert url == socket_url(EmbeddedBroker(Path("/srv/my home")).socket_path)


def test_windows_has_no_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(ConfigurationError, match="HELIX_REDIS_URL"):
        broker_url(settings(None))


def test_on_windows_no_embedded_broker_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who submits there asks first whether one runs; Python has no unix sockets on Windows."""
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.delattr("socket.AF_UNIX", raising=False)
    assert EmbeddedBroker(tmp_path).presence() is Presence.ABSENT


def test_priorities_turn_round_and_stay_in_range() -> None:
    assert [message_priority(p) for p in (9, 5, 0, -3, 99)] == [0, 4, 9, 9, 0]


def test_celery_is_set_up_to_lose_nothing() -> None:
    conf = celery_settings(settings("redis://host/1", max_batch_size=32, shutdown_grace=7.0), NAMES)
    assert conf["task_acks_late"] is True
    assert conf["accept_content"] == ["json"]
    assert conf["result_backend"] is None
    assert conf["broker_connection_max_retries"] is None
    options = conf["broker_transport_options"]
    assert options == transport_options("redis://host/1", NAMES)
    assert options["visibility_timeout"] == 86_400
    assert "retry_on_timeout" not in options, "it would turn pipelined publishing off"
    assert conf["worker_concurrency"] == concurrency(32) == 40
    assert concurrency(1) == 3


@pytest.mark.parametrize("args", [None, [], [1, 2], ["1"], [True], [0], [-1], [2**63], [1.0], [None], "1", {"a": 1}, 5])
def test_arguments_that_name_no_job(args: object) -> None:
    assert job_id_of(args) is None


def test_arguments_that_do() -> None:
    assert job_id_of([7]) == 7
    assert job_id_of((2**63 - 1,)) == 2**63 - 1


def test_publishing_needs_no_celery_and_no_torch() -> None:
    script = (
        "import sys\n"
        "from helix_jobs.broker.publisher import CeleryPublisher, QueueNames\n"
        "CeleryPublisher('memory://', QueueNames('one')).depth()\n"
        "sys.exit(bool({'celery', 'torch'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_importing_the_application_reads_no_environment_and_sets_up_no_logging() -> None:
    script = (
        "import logging, os\n"
        "os.environ['HELIX_DATABASE_URL'] = 'nonsense'\n"
        "from helix_jobs.broker.celery.app import app\n"
        "assert not logging.getLogger().handlers\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert logging.getLogger("celery").level == logging.NOTSET


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("redis://h/0", TypeError("_init_params() got an unexpected keyword argument 'nonsense'")),
        ("redis+socket:///run/s", ValueError("max_connections must be a positive integer")),
        ("memory://", KeyError("fanout")),
    ],
)
def test_a_fault_of_our_own_is_not_blamed_on_the_url(url: str, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, broker_errors(url):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("url", ["redis://h:port/0", "nosuch://h", "redis://h/0?nonsense=1"])
def test_a_url_that_is_none_is_told_as_such(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no broker URL"), broker_errors(url):
        Connection(url, transport_options={}).connect()
