"""QueueNames: the names of the queue and its keys, so that several installations can share one Redis.

An *installation* is one database. Its id is made once, with the tables, and is part of every name. So it shares no key,
queue or broadcast with another installation or program on the same Redis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

# kombu's Redis transport keeps one list for each priority: the queue's name, or the name with these bytes and the
# number.
PRIORITIES: Final = tuple(range(10))
PRIORITY_MARK: Final = "\x06\x16"
_URGENT_MARK: Final = ".urgent"
_QUEUE: Final = re.compile(r"helix\.[0-9a-z]{1,32}")


@dataclass(frozen=True, slots=True)
class QueueNames:
    """The names of one installation.

    Attributes:
        installation: Its id, lower-case letters and digits.
    """

    installation: str

    @classmethod
    def of_queue(cls, queue: str) -> QueueNames:
        """The names of the installation with this queue."""
        return cls(queue.removeprefix("helix."))

    @property
    def queue(self) -> str:
        """The queue that carries job ids; remote control's exchange has the same name."""
        return f"helix.{self.installation}"

    @property
    def lists(self) -> tuple[str, ...]:
        """The keys of the queue, in the order in which they are emptied."""
        return tuple(f"{self.queue}{PRIORITY_MARK}{step}" if step else self.queue for step in PRIORITIES)

    @property
    def urgent(self) -> str:
        """The name under which a worker takes messages from the first of ``lists`` alone; no key has this name."""
        return f"{self.queue}{_URGENT_MARK}"

    @property
    def unacked(self) -> str:
        """The hash of unacknowledged messages."""
        return f"{self.queue}.unacked"

    @property
    def unacked_index(self) -> str:
        """The sorted set of the times of their delivery."""
        return f"{self.queue}.unacked_index"

    @property
    def unacked_mutex(self) -> str:
        """The lock that one consumer at a time holds while it restores unacknowledged messages."""
        return f"{self.queue}.unacked_mutex"

    @property
    def publishing(self) -> str:
        """The key that one publisher at a time holds while it publishes."""
        return f"{self.queue}.publishing"

    @property
    def events(self) -> str:
        """The exchange of Celery's events, which Flower listens to."""
        return f"{self.queue}.events"


def without_urgent_mark(name: str) -> str:
    """The queue itself, if this name is the ``urgent`` one of a queue; other names stay as they are."""
    queue = name.removesuffix(_URGENT_MARK)
    return queue if is_job_queue(queue) else name


def is_job_queue(name: str) -> bool:
    """Whether a queue of this name carries jobs of some installation; remote control's queues do not."""
    return _QUEUE.fullmatch(name) is not None


def read_queue_names(database: Database) -> QueueNames:
    """Return the names of this database's installation.

    Raises:
        DatabaseUnreachableError: The database does not answer.
        SchemaVersionError: The installation's id was removed.
    """
    from helix_jobs.storage.installation import installation_id

    with database.read() as c:
        return QueueNames(installation_id(c))
