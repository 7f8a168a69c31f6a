"""rediss:// and users of Redis' own: a real server behind TLS with a certificate made here."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.broker.publisher import CeleryPublisher, QueueNames, ping, verifying_url
from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.storage.records import PublishableJob
from tests.integration.readme_acl import acl_words
from tests.worker_box import make_box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.redis

NAMES = QueueNames("one")
PASSWORD = "MARKED/s3cret@word"
ENCODED = "MARKED%2Fs3cret%40word"


@dataclass
class TlsBroker:
    port: int
    certificate: Path

    def url(self, *, password: str = ENCODED, check: str = "ca") -> str:
        query = {"ca": f"?ssl_ca_certs={self.certificate}", "system": "", "none": "?ssl_cert_reqs=none"}[check]
        return f"rediss://helix:{password}@localhost:{self.port}/0{query}"


class TlsFront:
    """What stunnel does: TLS outside, the server's unix socket inside."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext, socket_path: Path) -> None:
        self._listener = listener
        self._context = context
        self._socket_path = socket_path
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def join(self) -> None:
        for thread in list(self._threads):
            thread.join(30)

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, plain: socket.socket) -> None:
        with (
            plain,
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as outer,
            socket.socket(socket.AF_UNIX) as inner,
        ):
            inner.connect(str(self._socket_path))
            inward = self._start(self._copy, outer, inner)
            self._copy(inner, outer)
            inward.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tls_broker(short_tmp: Path) -> Iterator[TlsBroker]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = short_tmp / "cert.pem", short_tmp / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    server = EmbeddedBroker(short_tmp / "server")
    (short_tmp / "server").mkdir()
    server.start()
    with Redis(unix_socket_path=str(server.socket_path)) as client:
        client.execute_command(*acl_words(PASSWORD))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("localhost", 0)) as listener:
        front = TlsFront(listener, context, server.socket_path)
        yield TlsBroker(listener.getsockname()[1], certificate)
        listener.shutdown(socket.SHUT_RDWR)
    assert server.stop()
    front.join()


@pytest.mark.thorough
def test_a_worker_over_tls_as_a_user_of_its_own(tls_broker, short_tmp):
    box = make_box(short_tmp / "home", short_tmp, redis_url=tls_broker.url(), database_url=None)
    try:
        worker = box.start_worker()
        batch_id = box.submit("one", "two")
        box.wait_states(batch_id, succeeded=2)
        assert "s3cret" not in worker.log
        assert "rediss://helix:***@localhost" in worker.log
    finally:
        box.close()


def test_a_certificate_nobody_vouches_for_is_refused_unless_the_url_says_otherwise(tls_broker):
    for use in (ping, lambda url: CeleryPublisher(url, NAMES).depth()):
        with pytest.raises(BrokerUnreachableError, match="certificate") as caught:
            use(tls_broker.url(check="system"))
        assert "s3cret" not in str(caught.value)
    publisher = CeleryPublisher(tls_broker.url(check="none"), NAMES)
    publisher.publish([PublishableJob(1, 0)])
    assert publisher.depth() == 1
    publisher.close()


def test_a_wrong_password_is_told_without_it(tls_broker):
    with pytest.raises(BrokerUnreachableError, match="refuses") as caught:
        ping(tls_broker.url(password="MARKEDwrong"))
    assert "MARKED" not in str(caught.value)


def test_only_what_does_not_say_gets_the_full_check():
    assert verifying_url("rediss://h/0") == "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=true"
    assert verifying_url("rediss://h/0?ssl_ca_certs=/x").endswith(
        "?ssl_ca_certs=/x&ssl_cert_reqs=required&ssl_check_hostname=true"
    )
    for url in ("redis://h/0", "rediss://h/0?ssl_cert_reqs=none", "redis+socket:///s"):
        assert verifying_url(url) == url
