"""What kombu and redis-py raise for a broker that is away or says no, as Helix's errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def broker_errors(url: str) -> Iterator[None]:
    """Turn what kombu and redis-py raise for a broken or refusing broker into BrokerUnreachableError."""
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
    except (ValueError, KeyError, TypeError, ImportError) as error:
        # What kombu makes of a URL with an unknown scheme or a malformed port; ``broker_url`` lets none through.
        raise ConfigurationError(
            f"HELIX_REDIS_URL {redact(url)} is no broker URL ({redact(str(error))}); use redis://, rediss:// or redis+socket://"
        ) from error


def is_refusal(cause: BaseException) -> bool:
    """Whether the broker itself said no (password, right, replica, full memory), so that starting it mends nothing."""
    from redis import exceptions

    if isinstance(cause, exceptions.AuthenticationError):
        return True
    # Not answering is a ConnectionError of redis-py; so is an answer that the broker is still loading its file.
    silent = (exceptions.ConnectionError, exceptions.TimeoutError)
    return isinstance(cause, exceptions.RedisError) and not isinstance(cause, silent)
