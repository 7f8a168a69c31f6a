"""Room: which running sequences give up blocks, or their slots, so that a waiting one can begin. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf
    from collections.abc import Set as AbstractSet

    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.sequence import Sequence

# Blocks kept free for each running sequence. Trade-off: they leave a slot empty now and then, but save preemptions,
# each of which computes a whole sequence again.
_SPARE_BLOCKS: Final = 2


@dataclass(frozen=True, slots=True)
class Room:
    """What makes the room.

    Attributes:
        givers: Give up blocks that they keep only for others.
        displaced: Are preempted, and give up everything.
    """

    givers: tuple[Sequence, ...] = ()
    displaced: tuple[Sequence, ...] = ()


def find_room(
    pool: BlockPool,
    running: SequenceOf[Sequence],
    count: int,
    shared: AbstractSet[int] = frozenset(),
    *,
    displaceable: SequenceOf[Sequence] = (),
    slots: int = 0,
) -> Room | None:
    """The least that must be given up so that ``count`` blocks are free beside the spare ones.

    Args:
        pool: The blocks.
        running: The running sequences; the last ones give first.
        count: Blocks that must be free.
        shared: Blocks that the newcomer shares: those that are given up are none for it.
        displaceable: Sequences that may be preempted for it, in this order.
        slots: How many of them must be, as the newcomer has no slot.

    Returns:
        None if all of them together have too little.
    """
    spare = _SPARE_BLOCKS * len(pool.sections.windows)
    missing = count + spare * len(running) - pool.num_free
    given: Counter[int] = Counter()
    givers: list[Sequence] = []
    displaced: list[Sequence] = []

    def freed(blocks: SequenceOf[int]) -> int:
        given.update(blocks)
        free = (block for block in blocks if given[block] == pool.num_holders(block))
        return sum(block not in shared for block in free)

    for sequence in displaceable[:slots]:
        displaced.append(sequence)
        missing -= freed(sequence.table.held_blocks) + spare
    for sequence in reversed(running):
        if missing <= 0:
            break
        if sequence not in displaced and (blocks := sequence.unneeded_blocks()):
            givers.append(sequence)
            missing -= freed(blocks)
    for sequence in displaceable[slots:]:
        if missing <= 0:
            break
        kept = sequence.table.held_blocks
        if sequence in givers:
            givers.remove(sequence)
            unneeded = frozenset(sequence.unneeded_blocks())
            kept = [block for block in kept if block not in unneeded]
        displaced.append(sequence)
        missing -= freed(kept) + spare
    if missing > 0 or len(displaced) < slots:
        return None
    return Room(tuple(givers), tuple(displaced))
