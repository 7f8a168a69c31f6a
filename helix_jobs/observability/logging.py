"""Logging for every Helix process: one handler on the root logger, text for people or JSON for machines.

Modules only ever say ``logger = logging.getLogger(__name__)`` and ``logger.info("...", extra={...})``; entry points
call `configure_logging` once. Both formats show the ``extra`` fields. ``extra={"figures": {...}}`` repeats the
message's figures: its entries become keys in JSON and are left out of text.

Passwords in messages, extras and tracebacks are redacted here. This is the second line of defence, for the messages of
libraries: Helix's code redacts a URL before logging it.
"""

from __future__ import annotations

import logging
import math
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from helix_jobs.errors import ConfigurationError
from helix_jobs.json_line import json_line
from helix_jobs.redaction import redact
from helix_jobs.settings import LOG_FORMATS, LOG_LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_LOGGER: Final = "helix_jobs"
# Attributes every record has; all others came in through ``extra``.
_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# The extra whose entries the message itself contains.
_FIGURES: Final = "figures"

# Escapes control characters, which could forge another line or drive a terminal.
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {0x09: "\t", 0x0A: "\n    "}


class TextFormatter(logging.Formatter):
    """``2026-11-23 07:15:00 INFO    worker.job_service: message  key=value`` in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; tracebacks follow on their own lines."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        name = record.name.removeprefix(f"{_OWN_LOGGER}.")
        line = f"{when} {record.levelname:<7} {name}: {record.getMessage().translate(_CONTROL)}"
        fields = " ".join(f"{key}={value}" for key, value in extra_fields(record).items() if key != _FIGURES)
        if fields:
            line = f"{line}  {fields.translate(_CONTROL)}"
        trouble = _trouble(self, record)
        return redact(f"{line}\n{trouble}" if trouble else line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``logger``, ``message``, the extras, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; an extra never replaces one of the fixed keys."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        extras = dict(extra_fields(record))
        figures = extras.pop(_FIGURES, {})
        for key, value in (*extras.items(), *figures.items()):
            entry.setdefault(key, _redact_inside(value))
        trouble = _trouble(self, record)
        if trouble:
            entry["exception"] = redact(trouble)
        return json_line(entry)


def extra_fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields the caller passed as ``extra``."""
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD_ATTRIBUTES and not key.startswith("_") and value is not None
    }


def configure_logging(level: str, fmt: str, stream: TextIO | None = None) -> None:
    """Send every log record of this process to one handler; calling it again replaces that handler.

    Celery is told to leave logging alone (its ``setup_logging`` signal) if it is imported already, so call this after
    importing the Celery application.

    Args:
        level: One of ``LOG_LEVELS``, for Helix's own loggers. Libraries speak from warning up, from info up at debug.
        fmt: One of ``LOG_FORMATS``.
        stream: Where to write; None: ``sys.stderr`` as it is at the time of each record.

    Raises:
        ConfigurationError: Unknown level or format.
    """
    if level not in LOG_LEVELS:
        raise ConfigurationError(f"log level {level!r} is unknown; use one of {', '.join(LOG_LEVELS)}")
    if fmt not in LOG_FORMATS:
        raise ConfigurationError(f"log format {fmt!r} is unknown; use one of {', '.join(LOG_FORMATS)}")
    own_level = getattr(logging, level.upper())
    handler: logging.Handler = _StandardErrorHandler() if stream is None else logging.StreamHandler(stream)
    handler.set_name("helix")
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.get_name() == "helix"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if own_level <= logging.DEBUG else max(own_level, logging.WARNING))
    logging.getLogger(_OWN_LOGGER).setLevel(own_level)
    if "celery.signals" in sys.modules:
        _keep_celery_away()


def _keep_celery_away() -> None:
    from celery.signals import setup_logging

    setup_logging.connect(_ignore_celery_setup, dispatch_uid="helix_jobs.logging")


def _ignore_celery_setup(**_: object) -> None:
    """Do nothing: Celery configures logging only if no receiver is connected to this signal."""


def _redact_inside(value: object) -> object:
    """Return a JSON value of ``value`` without passwords; types unknown to JSON become text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        return {redact(str(key)): _redact_inside(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact_inside(inner) for inner in value]
    return redact(str(value))


def _trouble(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Looks up ``sys.stderr`` for each record, so that lines appear above a live progress bar, not across it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current standard error."""
        return sys.stderr
