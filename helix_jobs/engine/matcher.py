"""Grammar and Matcher: what an output must look like, token by token. No torch.

A *grammar* is a compiled constraint over one vocabulary; all requests that ask for it share it. A *matcher* stands at
one prefix of one output and says which tokens may follow. The library behind them is in ``engine.grammar``; another
one could stand in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from helix_jobs.engine.constraint import Kind


class GrammarError(InvalidRequestError):
    """A grammar cannot be compiled, or asks for more work than a token may take. Its request fails alone."""


class Matcher(Protocol):
    """Stands at a prefix of an output. Used by one thread at a time.

    Which tokens may follow is a function of the prefix alone, however the matcher came there.
    """

    def advance(self, token_ids: Sequence[int]) -> int:
        """Go on along the tokens, up to the first that may not follow; return how many were taken.

        End tokens are never taken: whether the output may end is ``is_accepting``.

        Raises:
            GrammarError: The work exceeds the limits. The matcher is of no use any more.
        """

    def rewind(self, count: int) -> None:
        """Go back ``count`` tokens.

        Raises:
            GrammarError: As in ``advance``.
        """

    def fill_mask(self, mask: NDArray[np.uint8]) -> None:
        """Set bit ``i % 8`` of byte ``i // 8`` for each token id ``i`` that may follow; clear all others.

        Bits of end tokens are undefined.

        Args:
            mask: ``[Grammar.mask_bytes]``, contiguous.

        Raises:
            GrammarError: As in ``advance``.
        """

    def allows(self, token_id: int) -> bool:
        """Whether the mask has the token's bit, without computing the mask.

        Raises:
            GrammarError: As in ``advance``.
        """

    def forced(self) -> Sequence[int]:
        """The tokens that must follow, one after the other: no other token is allowed in their place.

        May leave out the later ones, or all.
        """

    @property
    def is_accepting(self) -> bool:
        """Whether the prefix is a whole output."""

    @property
    def is_complete(self) -> bool:
        """Whether the prefix is a whole output, and nothing may follow."""


class Grammar(Protocol):
    """A compiled constraint over one vocabulary. Thread-safe."""

    @property
    def kind(self) -> Kind:
        """The constraint's kind."""

    @property
    def mask_bytes(self) -> int:
        """Size of a mask: one bit for each token id, rounded up to a multiple of 4 bytes."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The vocabulary's end tokens, whose bits in a mask are undefined."""

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an output."""

    def accepts(self, text: str) -> bool:
        """Whether the text is a whole output.

        Raises:
            GrammarError: As in ``Matcher.advance``.
        """

    def condemn(self, reason: str) -> None:
        """Let all its matchers fail from now on: one of them has exceeded a limit that the library did not see."""
