"""Celery alone: Helix's messages, broker and Celery settings, and a task that does nothing.

The bench runs it as ``python -m helix_jobs.bench.queue.celery_alone``, to measure the framework's limit here.
"""

from __future__ import annotations

from celery import Celery

from helix_jobs.broker.celery.app import celery_settings
from helix_jobs.broker.celery.consumer import Consumer
from helix_jobs.broker.celery.service import bind_service
from helix_jobs.broker.publisher import TASK_NAME, QueueNames, read_queue_names
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database


def make_app(settings: Settings, names: QueueNames) -> Celery:
    """Helix's application with Celery's own threads pool and an empty task in place of Helix's."""
    app = Celery("helix-bench")
    app.conf.update({**celery_settings(settings, names), "imports": [], "worker_pool": "threads"})

    @app.task(name=TASK_NAME)  # type: ignore[untyped-decorator]  # celery has no types
    def empty(job_id: int) -> None:
        """Do nothing."""

    return app


class _Nobody:
    """A stand-in for the service that Helix's Celery settings demand of a worker; the empty task needs none."""

    def run_job(self, job_id: int) -> bool:
        return job_id > 0

    def abort_job(self, job_id: int) -> None:
        pass

    def cancel_job(self, job_id: int) -> None:
        pass

    def begin_drain(self) -> None:
        pass

    def count_rejected(self, count: int) -> None:
        pass


if __name__ == "__main__":
    bind_service(_Nobody())
    settings = Settings.from_environment()
    database = Database(settings.database_url)
    app = make_app(settings, read_queue_names(database))
    database.dispose()
    Consumer(app=app, hostname="helix-bench@localhost", without_mingle=True, without_gossip=True).start()
