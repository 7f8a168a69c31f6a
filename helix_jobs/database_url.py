"""URLs of databases, as people write them and as SQLAlchemy needs them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file. ``?`` and ``%`` in its path are escaped, as they have a meaning in a URL."""
    return f"sqlite:///{quote(str(file), safe='/:')}"


def normalize_database_url(url: str) -> str:
    """Spell the URL of an accepted database family (SQLite, Postgres) as SQLAlchemy needs it (psycopg 3).

    Raises:
        ConfigurationError: The scheme is another, or there is more than one ``@``: part of the password would then be
            read as the host, and appear in messages.
    """
    if not url.startswith("sqlite:") and url.count("@") > 1:
        raise ConfigurationError(
            "HELIX_DATABASE_URL holds more than one @; percent-encode what is special in user name and password "
            "(@ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25)"
        )
    for prefix in ("postgresql+psycopg://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    if url.startswith("sqlite:"):
        return url
    scheme = url.split(":", 1)[0]
    raise ConfigurationError(f"HELIX_DATABASE_URL has the scheme {scheme!r}; use sqlite:/// or postgresql://")
