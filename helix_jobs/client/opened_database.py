"""OpenedDatabase: the client's database, opened and checked when it is first used, and again after it was closed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database
    from helix_jobs.time_limits import TimeLimits


class OpenedDatabase:
    """Any thread may use it. Imports SQLAlchemy when it is first asked for the database.

    Args:
        settings: Name the database.
        time_limits: Time limits of its connections.
    """

    def __init__(self, settings: Settings, time_limits: TimeLimits) -> None:
        self._settings = settings
        self._time_limits = time_limits
        self._opened: Database | None = None
        self._lock = threading.Lock()

    def get(self) -> Database:
        """The database; the first use checks its schema."""
        from helix_jobs.storage.database import Database
        from helix_jobs.storage.migration import ensure_schema

        with self._lock:
            if self._opened is None:
                database = Database(self._settings.database_url, self._time_limits)
                if database.sqlite_file is not None and self._settings.home in database.sqlite_file.parents:
                    self._settings.make_home()
                try:
                    ensure_schema(database)
                except BaseException:
                    database.dispose()
                    raise
                self._opened = database
            return self._opened

    def close(self) -> None:
        """Free the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.dispose()
