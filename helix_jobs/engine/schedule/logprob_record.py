"""LogprobRecord: the log probabilities of a sequence's tokens while they grow. No torch."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.engine.sampling.logprobs import LogprobRows


class LogprobRecord:
    """Log probabilities of consecutive tokens of one sequence. Only what is committed enters.

    Args:
        num_alternatives: Alternatives kept beside each token.
    """

    def __init__(self, num_alternatives: int) -> None:
        self.num_alternatives = num_alternatives
        self.token_ids = array("i")
        self.logprobs = array("f")

    def __len__(self) -> int:
        return len(self.token_ids) // (1 + self.num_alternatives)

    def extend(self, rows: LogprobRows, num_tokens: int) -> None:
        """Append the first ``num_tokens`` positions of ``rows``."""
        assert rows.width == 1 + self.num_alternatives, "a sequence asks for the same number everywhere"
        self.token_ids.extend(rows.token_ids[: num_tokens * rows.width])
        self.logprobs.extend(rows.logprobs[: num_tokens * rows.width])

    def truncate(self, num_tokens: int) -> None:
        """Forget the tokens past the first ``num_tokens``."""
        del self.token_ids[num_tokens * (1 + self.num_alternatives) :]
        del self.logprobs[num_tokens * (1 + self.num_alternatives) :]
