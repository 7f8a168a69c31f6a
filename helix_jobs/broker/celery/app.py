"""The Celery application: ``celery -A helix_jobs.broker.celery.app inspect ping`` works against a running worker.

``python worker.py`` starts the worker itself and loads the models first; ``celery worker`` is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.signals import worker_init

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE, interactive_slots
from helix_jobs.broker.celery.service import bound_service
from helix_jobs.broker.celery.urgent_tasks import UrgentTasks
from helix_jobs.broker.publisher import broker_url, read_queue_names, transport_options
from helix_jobs.errors import HelixError
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.broker.queue_names import QueueNames

# Trade-off: threads beyond the batch slots keep the engine fed while finished jobs are written and new ones claimed.
# Each of these threads holds a claimed, waiting job that another worker could have run. A job counts as one, whatever
# its `n`: a worker whose jobs ask for many choices holds more choices than it has slots.
LOOK_AHEAD_SHARE: Final = 4
MIN_LOOK_AHEAD: Final = 2


# A Celery application builds these once, at first use, from its configuration: queues, and the mailbox. If they stayed,
# a second worker in this process would wait at the queue of the first worker's installation.
_MADE_ONCE: Final = ("amqp", "control", "events")
_given: Final[list[tuple[Settings, QueueNames]]] = []


def concurrency(max_batch_size: int) -> int:
    """Return the number of pool threads for a batch: its slots plus a small look-ahead."""
    return max_batch_size + max(MIN_LOOK_AHEAD, max_batch_size // LOOK_AHEAD_SHARE)


def celery_settings(settings: Settings, names: QueueNames) -> Mapping[str, Any]:
    """Return Celery's configuration for this installation. The comments give the reason for each entry."""
    url = broker_url(settings)
    return {
        "broker_url": url,
        "broker_transport_options": transport_options(url, names),
        # A message is acknowledged after the job's result is committed, never before.
        "task_acks_late": True,
        "task_ignore_result": True,
        "result_backend": None,
        # One backend for all threads. Otherwise each thread looks up its own among all installed packages when its
        # first task ends; that opens files, which fails where the process has no descriptor left.
        "result_backend_thread_safe": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "event_serializer": "json",
        "imports": ["helix_jobs.broker.celery.task"],
        "task_default_queue": names.queue,
        # Keeps broadcasts apart from those of other applications on the same Redis.
        "control_exchange": names.queue,
        "event_exchange": names.events,
        "worker_pool": "helix_jobs.broker.celery.pool:TaskPool",
        # Without a setting, the worker puts in the size that its engine has chosen for the device.
        "worker_concurrency": concurrency(settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE),
        "worker_prefetch_multiplier": 2,
        # Messages of the highest priority that a worker takes beyond those: see ``UrgentTasks`` and ``TaskPool``.
        "helix_urgent_messages": interactive_slots(
            settings.interactive_slots, settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE
        ),
        "worker_enable_prefetch_count_reduction": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A refusing broker is waited for like an absent one.
        "broker_channel_error_retry": True,
        "worker_consumer": "helix_jobs.broker.celery.patient_consumer:PatientConsumer",
        # Jobs go on running while the broker is away; the fence makes a second delivery harmless.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_soft_shutdown_timeout": settings.shutdown_grace,
        "enable_utc": True,
        "timezone": "UTC",
    }


def configure(settings: Settings, names: QueueNames) -> Celery:
    """Give the application these settings instead of the environment's. For the worker, which may have flags."""
    # Celery prefers these variables to its configuration; here they would belong to another application.
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        os.environ.pop(name, None)
    _given.append((settings, names))
    app.conf.update(celery_settings(settings, names))
    for made in _MADE_ONCE:
        app.__dict__.pop(made, None)
    # Celery looks it up when the first task ends, and reads files of all installed packages for that. Here they can be
    # opened; by then the process may have no descriptor left.
    _ = app.backend
    return app


def _defaults() -> Mapping[str, Any]:
    """The last given configuration; for Celery's own commands and Flower, the environment's.

    Raises:
        SystemExit: A setting is wrong, or the database, which knows the queue's name, does not answer. Celery's command
            line shows only this error as a sentence.
    """
    if _given:
        return celery_settings(*_given[-1])
    try:
        return _from_environment()
    except HelixError as error:
        raise SystemExit(f"Error: {error}") from error


def _from_environment() -> Mapping[str, Any]:
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.migration import ensure_schema

    settings = Settings.from_environment()
    database = Database(settings.database_url)
    try:
        ensure_schema(database)
        return celery_settings(settings, read_queue_names(database))
    finally:
        database.dispose()


@worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def _refuse_bare_worker(**_: object) -> None:
    """Refuse to start: a worker without models would take messages and could not serve them."""
    if bound_service() is None:
        # Celery logs other errors of its receivers and goes on; only this one ends the process.
        raise SystemExit("start the worker with `python worker.py`, which loads the models; not with celery")


app = Celery("helix", amqp="helix_jobs.broker.celery.transport:AMQP", events="helix_jobs.broker.celery.events:Events")
app.steps["consumer"].add(UrgentTasks)
# Read when the first command needs it, so that importing this module reads no environment.
app.add_defaults(_defaults)
