"""StateSpan: which recurrent state a slice of tokens begins with, and where its states are kept. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptState:
    """The state behind the first ``length`` tokens of a sequence, and the row of the state cache that takes it."""

    length: int
    row: int


@dataclass(frozen=True, slots=True)
class StateSpan:
    """The part of the state cache that a slice of tokens uses.

    A slice computes tokens ``start`` to ``start + num_tokens`` of its sequence. It begins with the *checkpoint*, the
    state behind the first ``length`` tokens, and first *replays* tokens ``length`` to ``start``: an earlier step has
    computed them as drafts and left their inputs in the sequence's slot.

    Tokens behind the last kept state are drafts. Their inputs go to the slot, so that a later step can replay those
    that turn out accepted.

    Attributes:
        slot: The sequence's slot, which holds the inputs of draft tokens.
        length: Tokens that the checkpoint covers, at most ``start``.
        row: The checkpoint's row; None for the state before the first token.
        keeps: States to keep, by ascending length; each lies behind the checkpoint.
    """

    slot: int
    length: int
    row: int | None
    keeps: tuple[KeptState, ...] = ()
