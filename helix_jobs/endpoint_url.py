"""The address and the key of the user's server that Helix takes."""

from __future__ import annotations

from urllib.parse import urlsplit

from helix_jobs.errors import ConfigurationError

_EXAMPLE = "write http://HOST:PORT or https://HOST:PORT"


def checked_endpoint_url(url: str) -> str:
    """Return the address without ``/v1`` and without a slash at its end.

    Raises:
        ConfigurationError: It is no address of a server, or holds credentials; the message does not quote it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(f"HELIX_ENDPOINT_URL has no proper host and port; {_EXAMPLE}") from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"HELIX_ENDPOINT_URL is no address of a server; {_EXAMPLE}")
    if "@" in parts.netloc:
        raise ConfigurationError(
            "HELIX_ENDPOINT_URL holds a user or a password; leave them out, and set HELIX_ENDPOINT_KEY to the key"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(f"HELIX_ENDPOINT_URL has something behind a ? or a #; {_EXAMPLE}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme.lower()}://{parts.netloc}{path}"


def checked_endpoint_key(key: str) -> str:
    """Return the key.

    Raises:
        ConfigurationError: It cannot stand in a header; the message does not quote it.
    """
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            "HELIX_ENDPOINT_KEY holds characters that no header takes; give the server's key as it is"
        )
    return key
