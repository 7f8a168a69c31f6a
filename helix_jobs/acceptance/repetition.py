"""Whether a text ends by repeating itself: a unit of any length, again and again, until something cut it off.

A model that loops does so until ``max_tokens``, so the loop stands at the end, where it may break off within the unit.
What repeats in the middle and then goes on (a refrain, a table) is not looked at.

Method: the shortest period of each prefix of the reversed end comes from the prefix function of Knuth, Morris and
Pratt ("Fast Pattern Matching in Strings", SIAM Journal on Computing, 1977), in time linear in the end's length.

Trade-off: a compression ratio (Whisper's test for looping transcripts) would also find loops whose passes differ
slightly, but it rises with a text's length and with every table, so no one limit fits short and long answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# How many times a unit must stand in a row, and how many characters the row must have.
LEAST_REPEATS: Final = 4
LEAST_CHARS: Final = 100
# Only so much of the end is looked at: longer units than a quarter of it are not found.
END_CHARS: Final = 8192


@dataclass(frozen=True, slots=True)
class Repetition:
    """The row at a text's end.

    Attributes:
        unit_chars: Characters of the unit.
        chars: Characters of the row, a last broken unit included.
    """

    unit_chars: int
    chars: int


def repetition_at_end(text: str) -> Repetition | None:
    """The longest row at the text's end in which one unit stands four times or more over 100 characters or more."""
    reversed_end = text[-END_CHARS:][::-1]
    # prefix[i]: length of the longest proper border of reversed_end[: i + 1]; the period is the length without it.
    prefix = [0] * len(reversed_end)
    border = 0
    found: Repetition | None = None
    for i in range(1, len(reversed_end)):
        while border and reversed_end[i] != reversed_end[border]:
            border = prefix[border - 1]
        if reversed_end[i] == reversed_end[border]:
            border += 1
        prefix[i] = border
        chars = i + 1
        period = chars - border
        if chars >= LEAST_CHARS and chars >= LEAST_REPEATS * period:
            found = Repetition(period, chars)
    return found
