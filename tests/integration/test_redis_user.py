"""docs/security.md's Redis user, on the oldest server that Debian has and on the newest Valkey."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from helix_jobs.broker.embedded import _server_binary
from helix_jobs.doctor.broker import check_broker
from tests.integration.readme_acl import acl_words
from tests.services import missing_service
from tests.worker_box import make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@pytest.fixture(params=["redis-server", "valkey"])
def server(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Path]:
    """A server's socket; its user helix is the one of docs/security.md."""
    binary = shutil.which("redis-server") if request.param == "redis-server" else str(_server_binary())
    if binary is None:
        missing_service("no redis-server on the path")
    path = short_tmp / "redis.sock"
    process = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(short_tmp)],
        stdout=subprocess.DEVNULL,
    )
    try:
        with Redis(unix_socket_path=str(path)) as client:
            wait_until(lambda: answers(client), "the server does not answer")
            client.execute_command(*acl_words("PASSWORD"))
        yield path
    finally:
        process.kill()
        process.wait()


@pytest.mark.thorough
def test_it_may_do_what_helix_does_and_no_more(server: Path, short_tmp: Path) -> None:
    box = make_box(
        short_tmp / "home", short_tmp, redis_url=f"redis+socket://helix:PASSWORD@{server}", database_url=None
    )
    try:
        worker = box.start_worker()
        box.wait_states(box.submit("one", "two"), succeeded=2)
        asked = box.run(sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app", "inspect", "ping")
        assert "pong" in asked.stdout, asked.stdout + asked.stderr
        verdict, *others = check_broker(box.settings)
        assert box.names.queue in verdict.finding, others
        assert "ERROR" not in worker.log
    finally:
        box.close()
    with Redis(unix_socket_path=str(server)) as client:
        refused = {str(entry["object"]) for entry in client.execute_command("ACL", "LOG")}
        assert not refused - {"b'client|setinfo'"}, "it wanted more"
    with Redis(unix_socket_path=str(server), username="helix", password="PASSWORD") as client:
        for wrong in (lambda: client.get("others"), client.flushall, lambda: client.config_get("*")):
            with pytest.raises(NoPermissionError):
                wrong()
