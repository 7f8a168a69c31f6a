"""StatePool: which rows of the state cache hold which states, and which are free. No torch.

A *snapshot* is a state behind some full blocks of a prompt, kept so that requests with the same beginning need not
compute it again: a recurrent layer cannot begin behind shared keys without it. Unlike blocks, states are large and each
serves one length only, so few are kept, those used last. Where to keep them follows Pan et al., "Marconi: Prefix
Caching for the Era of Hybrid LLMs", MLSys 2025: at the end of a prompt, and where a prompt was found to leave another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from helix_jobs.engine.config import StateConfig
    from helix_jobs.engine.schedule.prefix_cache import Prefix
    from helix_jobs.engine.schedule.state_table import StateTable


class StatePool:
    """The rows and slots of one model's state cache.

    A row is free, or held: by sequences, as a snapshot, or both. Each sequence holds at most two rows beside snapshots,
    so a running sequence always finds one; a snapshot is made only where there is room for it.
    """

    def __init__(self, config: StateConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Free every row and slot, and forget the snapshots. Only when no table is left."""
        config = self._config
        self._free = list(range(config.num_rows - 1, -1, -1))
        self._free_slots = list(range(config.num_slots - 1, -1, -1))
        self._references = [0] * config.num_rows
        # Least recently used first.
        self._snapshots: OrderedDict[Prefix, int] = OrderedDict()
        # Rows of snapshots, and of states that are to become one.
        self._of_snapshots: set[int] = set()

    @property
    def keeps_snapshots(self) -> bool:
        """Whether it has room for any."""
        return self._config.num_snapshots > 0

    def take_slot(self) -> int:
        """Hand out a slot."""
        assert self._free_slots, "no more sequences run than there are slots"
        return self._free_slots.pop()

    def give_back_slot(self, slot: int) -> None:
        """Take a slot back."""
        self._free_slots.append(slot)

    def take(self) -> int:
        """Hand out a row for a state of a running sequence."""
        assert self._free, "there are two rows for each slot, beside those of snapshots"
        row = self._free.pop()
        self._references[row] = 1
        return row

    def take_for_snapshot(self) -> int | None:
        """Hand out a row for a snapshot, evicting one that nobody reads if need be; None if all are being read."""
        if len(self._of_snapshots) >= self._config.num_snapshots and not self._evict():
            return None
        row = self.take()
        self._of_snapshots.add(row)
        return row

    def share(self, row: int) -> None:
        """Count one more holder of a row."""
        self._references[row] += 1

    def give_back(self, row: int) -> None:
        """Count one holder less."""
        self._references[row] -= 1
        if self._references[row] == 0:
            self._of_snapshots.discard(row)
            self._free.append(row)

    def longest(self, prefixes: Sequence[Prefix]) -> int:
        """How many of the blocks that these prefixes name, from the first on, end at a snapshot."""
        return next((count for count in range(len(prefixes), 0, -1) if prefixes[count - 1] in self._snapshots), 0)

    def find(self, prefix: Prefix) -> int:
        """The row of a snapshot that ``longest`` found; it is the last to be evicted now."""
        self._snapshots.move_to_end(prefix)
        return self._snapshots[prefix]

    def add(self, prefix: Prefix, row: int) -> None:
        """Make a row, which the caller holds, the snapshot behind ``prefix``; the caller's hold passes on.

        Of two equal states the first stays. It is the last to be evicted now, as a new one is.
        """
        if prefix in self._snapshots:
            self._snapshots.move_to_end(prefix)
            self.give_back(row)
        else:
            self._snapshots[prefix] = row

    def forget(self, prefix: Prefix) -> None:
        """Drop the snapshot behind ``prefix``, if there is one."""
        row = self._snapshots.pop(prefix, None)
        if row is not None:
            self.give_back(row)

    def check_integrity(self, tables: Iterable[StateTable]) -> None:
        """Verify that each row is free, or held as often as it is counted.

        Args:
            tables: Every table that holds rows.

        Raises:
            AssertionError: A bug in the engine.
        """
        tables = list(tables)
        held = Counter(self._snapshots.values())
        for table in tables:
            held.update(table.rows)
        assert [held[row] for row in range(self._config.num_rows)] == self._references, "a row is held as counted"
        assert sorted([*self._free, *held]) == list(range(self._config.num_rows)), "a row is free or held"
        slots = [table.slot for table in tables if table.slot is not None]
        assert sorted([*self._free_slots, *slots]) == list(range(self._config.num_slots)), "a slot is free or held"
        assert len(self._of_snapshots) <= self._config.num_snapshots, "no more snapshots than there is room for"

    def _evict(self) -> bool:
        """Drop the least recently used snapshot that no sequence holds; False if there is none."""
        for prefix, row in self._snapshots.items():
            if self._references[row] == 1:
                self.forget(prefix)
                return True
        return False
