"""Webhook: posts signed events to an address of the user's."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from helix_jobs._version import __version__
from helix_jobs.errors import NotDeliveredError
from helix_jobs.notify.addresses import reachable_addresses
from helix_jobs.notify.signature import signed_headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.notify.event import Event

# Of one call of the network.
_PATIENCE_SECONDS: Final = 10.0
# Of the whole exchange: a receiver that sends a byte now and then must not hold the thread.
_LONGEST_SECONDS: Final = 30.0
_PORTS: Final = {"http": 80, "https": 443}


class Webhook:
    """A channel. Redirects are not followed, and proxies of the environment are not used.

    Args:
        url: Where to post, as ``checked_webhook_url`` lets it through. It may hold a secret, so no message has it.
        secret: What signs.
        allow_private: Take an address of this machine or of its networks.
    """

    name: Final = "webhook"

    def __init__(self, url: str, secret: str, *, allow_private: bool) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._default_port = _PORTS[parts.scheme]
        self._port = parts.port or self._default_port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._secret = secret
        self._allow_private = allow_private

    def send(self, event: Event) -> str:
        """Post the event; returns what came back, in words.

        Raises:
            ConfigurationError: The address is private, and that is not allowed.
            NotDeliveredError: The receiver cannot be reached, or did not take the event.
        """
        addresses = reachable_addresses(self._host, self._port, allow_private=self._allow_private)
        body = event.body()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"helix/{__version__}",
            **signed_headers(self._secret, event.id, int(time.time()), body),
        }
        connection = _Pinned(addresses, self._host, self._port, self._tls)
        connection.default_port = self._default_port
        try:
            with closing(connection), connection.within(_LONGEST_SECONDS):
                connection.request("POST", self._path, body, headers)
                # Nobody needs the answer's body, so none is read.
                status = connection.getresponse().status
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NotDeliveredError(f"the host {self._host} was not reached: {_reason(error)}") from error
        if http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES:
            return f"{self._host} answered {status}"
        hint = ", a redirect, which is not followed" if status < http.HTTPStatus.BAD_REQUEST else ""
        raise NotDeliveredError(f"the host {self._host} answered {status}{hint}")


class _Pinned(http.client.HTTPConnection):
    """A connection to one of the addresses that were looked at, under the name that they were found by."""

    def __init__(self, addresses: Sequence[str], host: str, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=_PATIENCE_SECONDS)
        self._addresses = addresses
        self._tls = tls
        self._is_cut = False

    def connect(self) -> None:
        """Connect. The certificate has to be the name's.

        Raises:
            TimeoutError: The connection was cut before it was there.
        """
        self.sock = self._reached()
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)
        if self._is_cut:
            raise TimeoutError

    def _reached(self) -> socket.socket:
        """A socket at the first address that takes it: a host may have one of IPv6 that no packet reaches."""
        *others, last = self._addresses
        patience = _PATIENCE_SECONDS / len(self._addresses)
        for address in others:
            with suppress(OSError):
                return self._opened(address, patience)
        return self._opened(last, patience)

    def _opened(self, address: str, patience: float) -> socket.socket:
        opened = socket.create_connection((address, self.port), timeout=patience)
        opened.settimeout(_PATIENCE_SECONDS)
        return opened

    def within(self, seconds: float) -> _Alarm:
        """End whatever goes on over the connection after so many seconds."""
        return _Alarm(self, seconds)

    def cut(self) -> None:
        """End whatever goes on over the connection; for another thread."""
        self._is_cut = True  # before the shutdown: connect looks at it once there is a socket
        with suppress(OSError, AttributeError):  # it may be closed, or not be there yet
            self.sock.shutdown(socket.SHUT_RDWR)


class _Alarm:
    """Cuts a connection when its time is over."""

    def __init__(self, connection: _Pinned, seconds: float) -> None:
        self._timer = threading.Timer(seconds, connection.cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
