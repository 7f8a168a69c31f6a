"""ForcedDrafter: proposes what a grammar forces: the rest of a key, the quotes and colons around it. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.protocol import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.turn import Turn


class ForcedDrafter:
    """Proposes the tokens that must follow in sequences with a grammar.

    Each of them is the only token that its position's mask allows, so that all are accepted. They are verified all the
    same: their keys and values have to be computed, and a fault of the grammar library then costs time alone.
    """

    name: Final = "forced"

    def propose(self, turns: SequenceOf[Turn]) -> None:
        """Give each turn the beginning of what its grammar forces, if anything."""
        for turn in turns:
            grammar = turn.sequence.grammar
            if grammar is None:
                continue
            ids = tuple(grammar.forced(turn.sequence.output_token_ids))[: turn.depth]
            if ids:
                # A computed draft of a fixed depth may reach beyond a short one, and is masked as well.
                is_trusted = 2 * len(ids) >= turn.depth
                turn.draft = Draft(ids, confidence=(1.0,) * len(ids), is_trusted=is_trusted)

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Do nothing: there is nothing to learn."""

    def forget(self, sequence: Sequence) -> None:
        """Do nothing: the grammar belongs to the sequence."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Do nothing: this drafter has no cache."""
