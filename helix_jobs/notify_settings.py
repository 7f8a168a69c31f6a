"""NotifySettings: the ``HELIX_*`` variables that say who is told of what."""

from __future__ import annotations

import base64
import binascii
import shlex
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from helix_jobs.errors import ConfigurationError
from helix_jobs.setting import Text, WholeNumber, declared

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  (Standard Webhooks' mark of secrets)
_LEAST_BYTES: Final = 24
_MOST_BYTES: Final = 64
_EXAMPLE: Final = "write https://HOST/PATH"


def checked_webhook_url(url: str) -> str:
    """Return the address.

    Raises:
        ConfigurationError: It is no address that can be posted to; the message does not quote it.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(f"HELIX_WEBHOOK_URL holds characters that no address has; {_EXAMPLE}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(f"HELIX_WEBHOOK_URL has no proper host and port; {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"HELIX_WEBHOOK_URL is no address of a server; {_EXAMPLE}")
    if "@" in parts.netloc:
        raise ConfigurationError(
            "HELIX_WEBHOOK_URL holds a user or a password; leave them out: HELIX_WEBHOOK_SECRET signs what is sent"
        )
    if parts.fragment:
        raise ConfigurationError(f"HELIX_WEBHOOK_URL has something behind a #, which no server gets; {_EXAMPLE}")
    return url


def checked_secret(secret: str) -> str:
    """Return the secret.

    Raises:
        ConfigurationError: It is none of Standard Webhooks; the message does not quote it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ConfigurationError(
            f"HELIX_WEBHOOK_SECRET is not {SECRET_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64; "
            "`helix notify secret` makes one"
        )
    return secret


def checked_command(line: str) -> str:
    """Return the line of the command.

    Raises:
        ConfigurationError: A quotation mark in it is not closed.
    """
    try:
        shlex.split(line)
    except ValueError as error:
        raise ConfigurationError(
            f"HELIX_NOTIFY_COMMAND cannot be split into a program and its arguments ({error}); close the quotation"
        ) from error
    return line


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """The part of ``Settings`` that says who is told of what."""

    webhook_url: str | None = field(
        default=None,
        metadata=declared(Text(checked_webhook_url), "Address that events of batches are posted to; default: none."),
    )
    webhook_secret: str | None = field(
        default=None, metadata=declared(Text(checked_secret), "What signs these events, as in Standard Webhooks.")
    )
    webhook_allow_private: int = field(
        default=0,
        metadata=declared(WholeNumber(0, 1), "1 lets the webhook go to this machine and its networks."),
    )
    notify_command: str | None = field(
        default=None,
        metadata=declared(
            Text(checked_command), "Program that is started for each event, with the event on its standard input."
        ),
    )
    notify_apprise: str | None = field(
        default=None, metadata=declared(Text(), "Addresses of apprise that are told of events, with spaces between.")
    )
    notify_failing: int = field(
        default=5,
        metadata=declared(
            WholeNumber(0, 100), "Per cent of a batch's ended jobs whose failure is an event; 0: it is none."
        ),
    )
