"""A wall clock that a test sets: the process's own, plus the seconds that stand in a file."""

from __future__ import annotations

import datetime as dt
import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# Whose modules may hold a name of their own for the clock.
_USERS = ("helix_jobs", "celery", "kombu", "redis", "vine", "billiard")
_IMPORTED = (
    *("broker.celery.consumer", "broker.celery.task", "broker.celery.transport"),
    *("worker.process", "worker.job_service", "client.client"),
)
_LOOK_SECONDS = 0.05


def set_by(file: Path) -> None:
    """From now on ``datetime.now`` and ``time.time`` of this process follow the file. Monotonic clocks do not."""
    # Only names that are there can be replaced; the class itself belongs to others as well, who subclass it.
    for name in _IMPORTED:
        importlib.import_module(f"helix_jobs.{name}")
    real_time, real_datetime = time.time, dt.datetime
    seen: list[float] = [0.0, 0.0]

    def offset() -> float:
        now = time.monotonic()
        if now - seen[0] > _LOOK_SECONDS:
            seen[:] = now, float(file.read_text() or seen[1])
        return seen[1]

    def shifted_time() -> float:
        return real_time() + offset()

    class ShiftedDatetime(real_datetime):  # type: ignore[valid-type,misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.now(tz) + dt.timedelta(seconds=offset())

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(dt.UTC).replace(tzinfo=None)

    time.time = shifted_time
    _replace({id(real_time): shifted_time, id(real_datetime): ShiftedDatetime})


def _replace(replaced: dict[int, Any]) -> None:
    """Give the modules other values under the names they have for these, by identity."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _USERS:
            for attribute, value in list(vars(module).items()):
                if id(value) in replaced:
                    setattr(module, attribute, replaced[id(value)])
