"""The channel on which a worker tells a server how an answer grows. Redis' PUBLISH: who does not listen misses it.

Nothing depends on a message: the answer itself is in the database. Each message says where its text begins, so that a
reader who misses one notices.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from helix_jobs.broker.queue_names import QueueNames

_FIELDS: Final = ("job_id", "lease", "choice", "reasoning_at", "text_at")


@dataclass(frozen=True, slots=True)
class Growth:
    """A piece by which an answer has grown.

    Attributes:
        job_id: The job.
        lease: The claim that computes it: after a worker's death the next claim begins anew, with a higher number.
        choice: Which of the job's answers.
        reasoning_at: Characters of thinking before the piece.
        reasoning: The piece of thinking.
        text_at: Characters of the answer before the piece.
        text: The piece of the answer.
    """

    job_id: int
    lease: int
    choice: int
    reasoning_at: int
    reasoning: str
    text_at: int
    text: str

    def to_message(self) -> bytes:
        """For the channel."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def of_message(cls, data: object) -> Growth | None:
        """Read a message; None for anything else, which strangers may have sent."""
        try:
            values: Any = json.loads(data) if isinstance(data, bytes | str) else None
        except ValueError:
            return None
        if not isinstance(values, dict) or values.keys() != set(cls.__slots__):
            return None
        numbers = all(type(values[name]) is int and values[name] >= 0 for name in _FIELDS)
        texts = isinstance(values["reasoning"], str) and isinstance(values["text"], str)
        return cls(**values) if numbers and texts else None


def channel_of(names: QueueNames, listener: str) -> str:
    """The channel's name: each server listens on its own."""
    return f"{names.queue}.stream.{listener}"
