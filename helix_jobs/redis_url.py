"""The broker URLs that Helix takes. kombu knows many more, and takes a bare host name for an AMQP server."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from helix_jobs.errors import ConfigurationError
from helix_jobs.redaction import redact

MEMORY_URL: Final = "memory://"
SERVERS: Final = ("redis", "rediss")
SOCKET: Final = "redis+socket"
_ACCEPTED: Final = "use redis://, rediss:// (TLS) or redis+socket:// (a unix socket)"
# The options kombu takes behind a question mark; it takes any other for an argument of its own.
_OPTIONS: Final = {
    "rediss": frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}),
    SOCKET: frozenset({"virtual_host"}),
}
_HOST: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:(?P<port>[0-9]{1,5}))?/?")


def checked_redis_url(url: str) -> str:
    """Return the URL with its scheme in lower case.

    Raises:
        ConfigurationError: Helix does not take this URL; the message says how to write it and contains no password.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        raise ConfigurationError(f"HELIX_REDIS_URL has no scheme; {_guess(url)}")
    url = f"{scheme.lower()}://{rest}"
    if url == MEMORY_URL:
        return url
    if scheme.lower() not in (*SERVERS, SOCKET):
        shown = scheme if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,30}", scheme) else "?"
        raise ConfigurationError(f"HELIX_REDIS_URL has the scheme {shown!r}, which is no Redis; {_ACCEPTED}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # The original error may quote a piece of a password.
        raise ConfigurationError(
            f"HELIX_REDIS_URL {redact(url)} has no proper host and port; write redis://HOST:PORT/NUMBER "
            "(in a password / is %2F, @ is %40)"
        ) from None
    allowed = _OPTIONS.get(scheme.lower(), frozenset())
    if strange := [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if name not in allowed]:
        what = f"the options {', '.join(sorted(allowed))}" if allowed else "no options"
        raise ConfigurationError(
            f"HELIX_REDIS_URL {redact(url)} has the option {strange[0]!r:.60}; a {scheme.lower()}:// URL takes {what}"
        )
    if scheme.lower() == SOCKET:
        if len(parts.path) < len("/s"):
            raise ConfigurationError(
                f"HELIX_REDIS_URL {redact(url)} names no socket; write redis+socket:///absolute/path.sock"
            )
    elif not re.fullmatch(r"(/[0-9]*)?", parts.path):
        raise ConfigurationError(
            f"HELIX_REDIS_URL {redact(url)} does not end with a database's number; write redis://HOST:PORT/NUMBER "
            "(in a password / is %2F), or redis+socket:///absolute/path.sock"
        )
    return url


def _guess(text: str) -> str:
    host = _HOST.fullmatch(text)
    if host is not None:
        return f"write redis://{host['host']}:{host['port'] or 6379}/0"
    if text.startswith("/") and "@" not in text:
        return f"write redis+socket://{text}"
    return _ACCEPTED
