"""What of a plan the answer cache spares: the worker's setup, and the answers that the database has."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from helix_jobs.client.spared_lines import SparedLines
from helix_jobs.errors import HelixError
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import current_revision, head_revision
from helix_jobs.worker.answer_setup import answer_setup
from helix_jobs.worker.model_digests import ModelDigests
from helix_jobs.worker.setup import worker_setup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)


def spared_lines(
    settings: Settings, info: EngineInfo, *, wanted: bool | None, stack: ExitStack, say: Callable[[str], None]
) -> SparedLines | None:
    """Who tells which lines a worker with these settings would not compute; None where it would compute all.

    Args:
        settings: Of the worker.
        info: The engine that it would have.
        wanted: Whether lines take stored answers; None where each is repeatable.
        stack: Closes the database in the end.
        say: Receives what goes on: the files of a large model are read for minutes, once.
    """
    if wanted is False or settings.answer_cache == "off":
        return None
    setup = worker_setup(settings, info)
    known: list[Mapping[str, Any]] = [setup]
    ModelDigests(settings, setup, known.append, say).look()
    own = answer_setup(known[-1], settings.answer_cache)
    if own is None:
        return None
    database = _opened(settings, stack)
    return SparedLines(own, wanted=wanted, read=None if database is None else database.read)


def _opened(settings: Settings, stack: ExitStack) -> Database | None:
    """The database, if it is there and of this version. A plan makes none, and brings none up to date."""
    try:
        database = Database(settings.database_url)
        stack.callback(database.dispose)
        if database.sqlite_file is not None and not database.sqlite_file.exists():
            return None
        if current_revision(database) != head_revision():
            logger.info("stored answers are not counted: the database is of another version of Helix")
            return None
    except HelixError as error:
        logger.warning("stored answers are not counted: %s", error)
        return None
    return database
