"""Forced drafts: what a grammar forces, such as the rest of a key, with the quotes and colons around it. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.speculation.turn import Turn

# The name that forced drafts have in a step's reason.
FORCED: Final = "forced"


def force(turns: SequenceOf[Turn]) -> None:
    """Give each turn with a grammar the tokens that must follow, as many as may be verified.

    Each of them is the only token that its position's mask allows, so all are accepted. They are verified all the same:
    their keys and values have to be computed, and a fault of the grammar library then costs time alone.

    A sampled output does not depend on how many of them are drafted. The target's probability of such a token is 1, so
    it is accepted, or drawn, whatever the random numbers are; and each position has random numbers of its own.
    """
    for turn in turns:
        sequence = turn.sequence
        if turn.ceiling and sequence.grammar is not None:
            turn.forced = tuple(sequence.grammar.forced(sequence.output_token_ids))[: turn.ceiling]
