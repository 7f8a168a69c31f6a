"""Work: the jobs that are left to do, in their order. Of very many jobs every so-manieth stands for its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# Jobs that are simulated one by one.
# Trade-off: more of them tell more about the end of a batch; their mean is known to 2 % of its deviation with these.
MOST_JOBS: Final = 2048


@dataclass(frozen=True, slots=True)
class JobShape:
    """What is known of a job before it ends.

    Attributes:
        prompt_tokens: Of its prompt, as in ``Answer``.
        computed_tokens: Prompt tokens that no cached prefix spares.
        limit: Most tokens of its answer.
        done_tokens: Tokens of its answer that are there already.
        known: The tokens of its answer, where it has been answered in a trial; None otherwise.
    """

    prompt_tokens: int
    computed_tokens: int
    limit: int
    done_tokens: int = 0
    known: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs that are left.

    Attributes:
        running: Those under way, one by one.
        waiting: Those that wait, in their order: all of them, or every so-manieth.
        waiting_count: How many wait.
        slots: Sequences at once.
    """

    running: tuple[JobShape, ...]
    waiting: tuple[JobShape, ...]
    waiting_count: int
    slots: int

    def __post_init__(self) -> None:
        assert self.slots > 0, "the caller knows how many run at once"
        assert self.waiting_count >= len(self.waiting), "a job stands for itself at least"


class Thinned(Generic[T]):
    """Every so-manieth of the things that were added, so that between half of ``limit`` and ``limit`` are kept.

    Attributes:
        items: Those that are kept, in their order.
        count: How many were added.
    """

    def __init__(self, limit: int = MOST_JOBS) -> None:
        self.items: list[T] = []
        self.count = 0
        self._limit = limit
        self._stride = 1

    def add(self, item: T) -> None:
        """Take one more thing."""
        if self.count % self._stride == 0:
            if len(self.items) == self._limit:
                self.items = self.items[::2]
                self._stride *= 2
            if self.count % self._stride == 0:
                self.items.append(item)
        self.count += 1
