"""Turns the errors of kombu and redis-py for an absent or refusing broker into Helix's errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator


# kombu raises these for a URL with an unknown scheme, a malformed port or an unknown option.
_NO_URL: Final = (ValueError, KeyError, TypeError, ImportError)


@contextmanager
def broker_errors(url: str) -> Iterator[None]:
    """Turn kombu's and redis-py's errors for a broken or refusing broker into BrokerUnreachableError."""
    from kombu.exceptions import KombuError
    from redis.exceptions import RedisError

    try:
        yield
    except (OSError, KombuError, RedisError) as error:
        cause = error.__cause__ or error
        reason = redact(str(cause)).rstrip(". ") or type(cause).__name__
        if is_refusal(cause):
            raise BrokerUnreachableError(
                f"the broker at {redact(url)} refuses: {reason}; correct HELIX_REDIS_URL or the broker's settings"
            ) from error
        if missing := explain_missing_descriptor():
            raise BrokerUnreachableError(f"the broker at {redact(url)} cannot be reached: {missing}") from error
        raise BrokerUnreachableError(
            f"the broker at {redact(url)} does not answer: {reason}; "
            "start it, or correct HELIX_REDIS_URL (unset, the worker runs a broker of its own)"
        ) from error
    except _NO_URL as error:
        if _fault_of(url) is None:  # our own options, or a bug: nothing that a user could correct
            raise
        raise ConfigurationError(
            f"HELIX_REDIS_URL {redact(url)} is no broker URL ({redact(str(error))}); use redis://, rediss:// or redis+socket://"
        ) from error


def _fault_of(url: str) -> Exception | None:
    """Return kombu's error for the URL alone. ``broker_url`` lets no URL through that kombu refuses."""
    from kombu.connection import Connection

    try:
        Connection(url).get_transport_cls()
    except _NO_URL as error:
        return error
    return None


def is_refusal(cause: BaseException) -> bool:
    """Whether the broker itself refused (password, right, replica, full memory), so that starting it would not help."""
    from redis import exceptions

    if isinstance(cause, exceptions.AuthenticationError):
        return True
    # redis-py raises ConnectionError if no answer comes, and also if the broker says that it is still loading its file.
    silent = (exceptions.ConnectionError, exceptions.TimeoutError)
    return isinstance(cause, exceptions.RedisError) and not isinstance(cause, silent)
