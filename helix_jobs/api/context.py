"""Context: what the routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from helix_jobs.api.access import Access
from helix_jobs.api.batch_intake import BatchIntake
from helix_jobs.api.batch_reading import read_batch
from helix_jobs.api.batch_readings import BatchReadings
from helix_jobs.api.body_room import BodyRoom
from helix_jobs.api.ending import Ending
from helix_jobs.api.figures import Figures
from helix_jobs.api.growth_feed import GrowthFeed
from helix_jobs.api.interactive import Interactive
from helix_jobs.api.job_watch import JobWatch
from helix_jobs.api.open_requests import OpenRequests
from helix_jobs.api.outbox import Outbox
from helix_jobs.api.page.board import Board
from helix_jobs.api.page.events import Listeners
from helix_jobs.api.page.sessions import Sessions
from helix_jobs.api.retention import Retention
from helix_jobs.api.thought import Thought
from helix_jobs.api.workers import Workers
from helix_jobs.notify.notifier import Notifier
from helix_jobs.notify.thread import NotifierThread

if TYPE_CHECKING:
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of a running server. ``close`` ends their threads and connections."""

    settings: Settings
    database: Database
    access: Access
    interactive: Interactive
    outbox: Outbox
    watch: JobWatch
    feed: GrowthFeed
    open_requests: OpenRequests
    workers: Workers
    retention: Retention
    figures: Figures
    intake: BatchIntake
    notifier: NotifierThread
    body_room: BodyRoom
    thought: Thought
    readings: BatchReadings
    ending: Ending
    board: Board
    listeners: Listeners
    sessions: Sessions

    @classmethod
    def of(cls, settings: Settings, database: Database) -> Self:
        """Make the parts.

        Raises:
            ConfigurationError: The API keys are malformed, or missing although others than this machine may ask; or a
                setting of notices is wrong.
        """
        access = Access.of(settings.api_keys, settings.serve_host)
        open_requests = OpenRequests(settings.max_open_requests, is_shared=len(access.digests) > 1)
        notifier = Notifier.of(database, settings)
        thought = Thought(database)
        readings = BatchReadings(lambda api_id: read_batch(database, thought, api_id))
        return cls(
            settings=settings,
            database=database,
            access=access,
            interactive=Interactive(settings, database),
            outbox=Outbox(settings, database),
            watch=JobWatch(database),
            feed=GrowthFeed(settings, database),
            open_requests=open_requests,
            workers=Workers(database, database.time_limits.lease),
            retention=Retention(database, settings.request_retention),
            figures=Figures(lambda: open_requests.total),
            intake=BatchIntake(settings, database, readings.forget),
            notifier=NotifierThread(notifier),
            body_room=BodyRoom(),
            thought=thought,
            readings=readings,
            ending=Ending(),
            board=Board(database),
            listeners=Listeners(),
            sessions=Sessions(),
        )

    def close(self) -> None:
        """End the threads and close the connections."""
        self.intake.close()
        self.watch.close()
        self.feed.close()
        self.retention.close()
        self.outbox.close()
        self.notifier.close()
