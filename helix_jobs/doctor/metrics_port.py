"""Check that the metrics port is free, or already used by a worker."""

from __future__ import annotations

import http.client
import socket
import urllib.request
from typing import TYPE_CHECKING, Final

from helix_jobs.doctor.verdict import Level, Verdict

if TYPE_CHECKING:
    from helix_jobs.settings import Settings

SUBJECT: Final = "metrics port"
# A metric that a worker serves once its models are loaded.
_SERVED: Final = b"helix_worker_info"
_ANSWER_SECONDS: Final = 5.0


def check_metrics(settings: Settings) -> list[Verdict]:
    """Try to listen on the address in the settings; no verdict without HELIX_METRICS_PORT."""
    host, port = settings.metrics_host, settings.metrics_port
    if port is None:
        return [Verdict(SUBJECT, Level.OK, "off; HELIX_METRICS_PORT turns it on")]
    try:
        socket.create_server((host, port), family=_family(host, port)).close()
    except OSError as error:
        if _serves_helix(host, port):
            return [Verdict(SUBJECT, Level.OK, f"{host} port {port}, served by a worker")]
        # The rest of the message repeats the address.
        reason = str(error.strerror or error).partition(" (while")[0]
        finding = f"{host} port {port} cannot be used: {reason}"
        return [Verdict(SUBJECT, Level.FAILED, finding, "set HELIX_METRICS_PORT or HELIX_METRICS_HOST to another")]
    return [Verdict(SUBJECT, Level.OK, f"{host} port {port}, free for a worker")]


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]


def _serves_helix(host: str, port: int) -> bool:
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  (recognised, not bound)
    try:
        # Ignore proxies in the environment: the port is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}:{port}/metrics", timeout=_ANSWER_SECONDS) as answer:
            return _SERVED in answer.read(1 << 20)
    # The listener may speak another protocol, and the host may be malformed.
    except (OSError, ValueError, http.client.HTTPException):
        return False
