"""RedisServer: a real Redis-compatible server of a test's own, to be killed, frozen and started again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from helix_jobs.broker.embedded import _server_binary
from helix_jobs.broker.messages import job_id_of_message
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.broker.queue_names import QueueNames


def free_port() -> int:
    """A TCP port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


class RedisServer:
    """On a TCP port of its own, which it keeps over restarts. Without persistence unless asked for.

    Args:
        directory: Where its log and, if any, its files lie.
        persistent: Keep an append-only file.
    """

    def __init__(self, directory: Path, *, persistent: bool = False) -> None:
        self._directory = directory
        self._persistent = persistent
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(_server_binary()),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)),
                    *("--save", "", "--appendonly", "yes" if self._persistent else "no"),
                    *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.answers, "the Redis server does not answer")

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """SIGKILL; what it held in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def unacked(self, names: QueueNames) -> int:
        """An installation's messages that were delivered and not acknowledged: the set, or its index if it has more."""
        with self.client() as client:
            return max(int(client.hlen(names.unacked)), int(client.zcard(names.unacked_index)))

    def unacked_jobs(self) -> dict[str, int | None]:
        """Delivery tag -> job id of the messages that are delivered and not acknowledged."""
        with self.client() as client:
            entries = [entry for key in client.scan_iter("helix.*.unacked") for entry in client.hgetall(key).items()]
        return {tag.decode(): job_id_of_message(*json.loads(entry)[0::2]) for tag, entry in entries}
