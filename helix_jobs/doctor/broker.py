"""Check that the broker answers and keeps its messages."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from helix_jobs.broker.embedded import EmbeddedBroker, Presence
from helix_jobs.broker.older_keys import removal
from helix_jobs.broker.publisher import broker_url
from helix_jobs.broker.queue_names import QueueNames, read_queue_names
from helix_jobs.doctor.broker_state import BrokerState, read_broker_state
from helix_jobs.doctor.clock import judge_skew
from helix_jobs.doctor.verdict import Level, Verdict, failure
from helix_jobs.errors import BrokerUnreachableError, ConfigurationError, HelixError
from helix_jobs.redaction import redact
from helix_jobs.redis_url import MEMORY_URL, SOCKET
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import ensure_schema
from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from helix_jobs.settings import Settings

SUBJECT = "broker"


def check_broker(settings: Settings) -> list[Verdict]:
    """Check the broker in the settings; an embedded broker is not started for this."""
    if settings.redis_url is None:
        return _check_embedded(settings)
    if settings.redis_url == MEMORY_URL:
        return [Verdict(SUBJECT, Level.OK, "within one process, for --local only")]
    try:
        return _check_server(settings, broker_url(settings), embedded=False)
    except ConfigurationError as error:
        return [failure(SUBJECT, error)]


def judge_state(state: BrokerState, url: str, *, embedded: bool) -> list[Verdict]:
    """Judge the state of a server.

    Args:
        state: The state that the server reported.
        url: The server's URL.
        embedded: Whether the server is Helix's own, which deliberately keeps nothing on disk.
    """
    kind = "embedded " if embedded else ""
    finding = f"{kind}{state.server} at {redact(url)}"
    if state.queue is not None:
        finding += f", queue {state.queue}: {state.messages} ids waiting, {state.unacked} in workers' hands"
    return [
        Verdict(SUBJECT, Level.OK, finding),
        _judge_memory(state),
        _judge_disk(state, embedded=embedded),
        judge_skew(SUBJECT, state.skew_seconds),
        *_judge_older_keys(state, url),
    ]


def _check_embedded(settings: Settings) -> list[Verdict]:
    if sys.platform == "win32":
        finding = "no HELIX_REDIS_URL, and no embedded broker on Windows: only --local works"
        return [Verdict(SUBJECT, Level.WARNING, finding, "set HELIX_REDIS_URL to run worker and submit apart")]
    try:
        EmbeddedBroker.check_available()
    except ConfigurationError as error:
        return [failure(SUBJECT, error)]
    broker = EmbeddedBroker(settings.home)
    presence = broker.presence()
    if presence is Presence.ABSENT:
        return [Verdict(SUBJECT, Level.OK, "embedded, not running; a worker starts it")]
    if presence is Presence.SILENT:
        remedy = "a running worker replaces it after a minute; or stop the workers and start them again"
        return [Verdict(SUBJECT, Level.FAILED, f"embedded, at {broker.socket_path}: does not answer", remedy)]
    return _check_server(settings, broker.url, embedded=True)


def _check_server(settings: Settings, url: str, *, embedded: bool) -> list[Verdict]:
    try:
        return judge_state(read_broker_state(url, _queue_names(settings)), url, embedded=embedded)
    except (BrokerUnreachableError, ConfigurationError) as error:
        return [failure(SUBJECT, error)]


def _queue_names(settings: Settings) -> QueueNames | None:
    """The queue's names; None if the database cannot be read, which the database's check reports."""
    try:
        database = Database(settings.database_url)
        try:
            ensure_schema(database, migrate=False)  # doctor makes no file
            return read_queue_names(database)
        finally:
            database.dispose()
    except HelixError:
        return None


def _judge_memory(state: BrokerState) -> Verdict:
    limit = f"of {rough_size(state.maxmemory)}" if state.maxmemory else "without a limit"
    finding = f"{rough_size(state.used_memory)} used {limit}, maxmemory-policy {state.policy}"
    if state.policy != "noeviction":
        remedy = "set maxmemory-policy noeviction (CONFIG SET, and in its configuration): evicted ids stop the queue"
        return Verdict("broker, memory", Level.WARNING, finding, remedy)
    if state.maxmemory and state.used_memory > 0.9 * state.maxmemory:
        return Verdict("broker, memory", Level.WARNING, finding, "raise maxmemory: a full broker takes no more ids")
    return Verdict("broker, memory", Level.OK, finding)


def _judge_older_keys(state: BrokerState, url: str) -> list[Verdict]:
    keys = state.older_keys
    if not keys:
        return []
    named = ", ".join(f"{ascii(key.name)[1:-1]} ({key.messages:,} ids, {rough_size(key.bytes)})" for key in keys)
    parts = urlsplit(url)
    where = f"-s {shlex.quote(unquote(parts.path))}" if parts.scheme == SOCKET else f"-u {shlex.quote(redact(url))}"
    remedy = f"if no worker of that version runs any more: {removal(keys, where)}"
    return [Verdict("broker, old keys", Level.WARNING, f"left by a Helix before installation ids: {named}", remedy)]


def _judge_disk(state: BrokerState, *, embedded: bool) -> Verdict:
    subject = "broker, persistence"
    if not state.is_saving:
        remedy = "look at its log and its disk: until it can write again it may refuse ids"
        return Verdict(subject, Level.WARNING, "its last attempt to write to disk failed", remedy)
    if state.appends:
        return Verdict(subject, Level.OK, "append-only file")
    if embedded:
        return Verdict(subject, Level.OK, "nothing on disk, by intention: ids are sent again from the database")
    # Nothing is lost without it, so it is no warning.
    finding = "no append-only file: after a restart ids are sent again from the database, half a minute later"
    return Verdict(subject, Level.OK, finding)
