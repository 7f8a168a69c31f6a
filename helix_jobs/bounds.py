"""Bounds: numbers that several packages share."""

from __future__ import annotations

from typing import Final

# A job's highest priority; higher runs first.
MAX_PRIORITY: Final = 9
# The engine's priority of a request that a person waits for: above that of any bulk job.
INTERACTIVE_PRIORITY: Final = MAX_PRIORITY + 1
# The most new tokens a request may ask for.
MAX_NEW_TOKENS: Final = 131_072
MAX_SPECULATION_DEPTH: Final = 16
# The most sequences that may run at once.
MAX_BATCH_SIZE: Final = 4096
# The batch size if neither a setting nor the device gives another.
DEFAULT_MAX_BATCH_SIZE: Final = 32


def interactive_slots(asked: int | None, max_batch_size: int) -> int:
    """Slots that interactive requests hold at most while there is bulk work: as asked, or half of the batch."""
    return min(max_batch_size, asked or max(1, max_batch_size // 2))
