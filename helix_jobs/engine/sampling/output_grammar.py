"""OutputGrammar: holds one request's output to its grammar. A logits processor.

The mask of a position depends on the tokens before it alone. A matcher is kept at the prefix asked for last, and walks
or goes back to the next one, so that rejected drafts, preemptions and repeated steps leave nothing to undo.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.reasoning import is_undecided, reasoning_end

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch
    from numpy.typing import NDArray

    from helix_jobs.engine.matcher import Grammar
    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.sampling.mask_worker import MaskWorker

_FORBIDDEN: Final = float("-inf")


class OutputGrammar:
    """The grammar of one output, as a logits processor that comes after all others.

    Stop tokens are allowed exactly where the grammar accepts the output so far; end tokens that do not stop this
    request never are. A model that thinks first is free until its thinking has ended: the grammar begins behind it,
    also in the middle of a draft. Where the model may think or not, it begins with its thinking or with the grammar.

    Beside other processors it may leave no token, as other masks may; see ``token_masks``.

    Trade-off: the mask comes after the penalties and before the temperature, as where transformers puts a caller's own
    processor. A penalty can so make the model choose another allowed token, never one that is not.

    Args:
        grammar: The compiled constraint.
        worker: Computes its masks.
        stop_token_ids: Tokens that end this output.
        reasoning: How the output thinks before its answer; None if the grammar holds from the first token.

    Attributes:
        grammar: The compiled constraint.
        error: Why the grammar cannot be followed beyond some prefix, which a draft may have led to; None while it can.
    """

    keeps_argmax: Final = False

    def __init__(
        self,
        grammar: Grammar,
        worker: MaskWorker,
        stop_token_ids: Collection[int],
        reasoning: ReasoningForm | None = None,
    ) -> None:
        self.grammar: Final = grammar
        self._worker = worker
        self.error: GrammarError | None = None
        # The prefix that the error belongs to: it holds for each output that begins so.
        self._failed: list[int] = []
        self._stops = frozenset(stop_token_ids)
        self._other_ends = grammar.end_token_ids - self._stops
        self._reasoning = reasoning
        self._matcher = grammar.matcher()
        # The prefix that the matcher stands at, thinking included; and the length of the thinking, None while it lasts.
        self._walked: list[int] = []
        self._thinking: int | None = 0 if reasoning is None else None
        # Masks of positions along ``_walked``, by their number of tokens before.
        self._masks: dict[int, NDArray[np.uint8]] = {}

    def job(self, output_ids: Sequence[int], draft_ids: Sequence[int] = ()) -> PositionMasks:
        """For the mask worker: the masks behind ``output_ids`` and behind each draft token.

        ``shape`` would have them computed otherwise, one by one.
        """
        return PositionMasks(self, output_ids, draft_ids)

    def prepare(self, output_ids: Sequence[int], draft_ids: Sequence[int]) -> None:
        """Compute the masks of a job. Never raises: see ``error``."""
        ids = [*output_ids, *draft_ids]
        for position in [kept for kept in self._masks if kept < len(output_ids)]:
            del self._masks[position]
        for length in range(len(output_ids), len(ids) + 1):
            if self._mask(ids[:length]) is None:
                break

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Forbid the tokens that may not follow, or all after an error; see ``LogitsProcessor.shape``.

        Nothing happens while the model thinks, and behind a token that is not allowed itself: no output gets there.
        """
        position = len(output_ids)
        if (opening := self._rest_of_opening(output_ids)) is not None:
            score = float(logits[opening])
            logits.fill_(_FORBIDDEN)
            logits[opening] = score
            return
        if not self._has_mask(output_ids):
            if self._has_failed(output_ids):
                logits.fill_(_FORBIDDEN)
            return
        if position not in self._masks:
            self._worker.run(self.job(output_ids))
        mask = self._masks.get(position)
        if mask is None:
            logits.fill_(_FORBIDDEN)
            return
        # In numpy, on one thread: torch would split so short a row among threads, and wait for each of them.
        # [vocab_size], the row's own memory
        row = logits.numpy()
        row[np.unpackbits(~mask, bitorder="little", count=len(row)).view(np.bool_)] = _FORBIDDEN

    def choose(self, token_id: int, logits: torch.Tensor, output_ids: Sequence[int]) -> int:
        """The most likely token that may follow.

        Most masks allow what the model likes best. To see that takes a hundredth of the time of a mask.

        Args:
            token_id: The most likely token of all.
            logits: Logits of the position, shaped by the other processors; masked only if ``token_id`` is not allowed.
            output_ids: Output tokens before it, draft tokens included.
        """
        if self._allows(token_id, output_ids) and logits[token_id] != _FORBIDDEN:
            return token_id
        self.shape(logits, output_ids)
        return int(logits.numpy().argmax())

    def forced(self, output_ids: Sequence[int]) -> Sequence[int]:
        """The tokens that must follow; perhaps only the first of them, or none. Never raises: see ``error``."""
        if self._stands_at(output_ids):
            try:
                return self._matcher.forced()
            except GrammarError as error:
                self._fail(error, output_ids)
        return ()

    def is_accepting(self, output_ids: Sequence[int]) -> bool:
        """Whether the grammar has begun and accepts the output; False also after an error."""
        return self._stands_at(output_ids) and self._matcher.is_accepting

    def is_complete(self, output_ids: Sequence[int]) -> bool:
        """Whether the grammar accepts the output, and nothing may follow; False also after an error."""
        return self._stands_at(output_ids) and self._matcher.is_complete

    def condemn(self, reason: str) -> None:
        """Give the grammar up, for all requests that have it: another thread may hold its matcher for ever."""
        self._fail(GrammarError(reason), ())
        self.grammar.condemn(reason)

    def _stands_at(self, output_ids: Sequence[int]) -> bool:
        """Walk to the prefix; whether the grammar has begun there and allows it."""
        return self._walk(output_ids) and self._thinking is not None

    def _allows(self, token_id: int, output_ids: Sequence[int]) -> bool:
        """Whether the mask behind the prefix has the token; also where everything is allowed. See ``error``."""
        if (opening := self._rest_of_opening(output_ids)) is not None:
            return token_id == opening
        if not self._has_mask(output_ids):
            return not self._has_failed(output_ids)
        if not output_ids and token_id == self._opening:
            return True
        if token_id in self._stops:
            return self._matcher.is_accepting
        try:
            return self._matcher.allows(token_id)
        except GrammarError as error:
            self._fail(error, output_ids)
            return False

    def _is_undecided(self, output_ids: Sequence[int]) -> bool:
        """Whether the model may still begin to think."""
        form = self._reasoning
        return form is not None and is_undecided(output_ids, form)

    @property
    def _opening(self) -> int | None:
        """The token with which the model may begin to think; None if it does not, or has begun in the prompt."""
        form = self._reasoning
        return None if form is None or form.starts_open else form.opening_ids[0]

    def _rest_of_opening(self, output_ids: Sequence[int]) -> int | None:
        """The token that must follow in an opening of several tokens that the output has begun."""
        form = self._reasoning
        if form is None or not output_ids or not self._is_undecided(output_ids):
            return None
        position = len(output_ids)
        return form.opening_ids[position] if tuple(output_ids) == form.opening_ids[:position] else None

    def _has_mask(self, output_ids: Sequence[int]) -> bool:
        """Walk to the prefix; whether the grammar says what may follow it."""
        stands = self._stands_at(output_ids)
        # At the very beginning the matcher stands at its start, also where the model may think first.
        return stands or (not output_ids and self.error is None and self._is_undecided(output_ids))

    def _mask(self, output_ids: Sequence[int]) -> NDArray[np.uint8] | None:
        """The packed mask behind the prefix; None where everything is allowed. Never raises: see ``error``."""
        if not self._has_mask(output_ids):
            return None
        position = len(output_ids)
        mask = self._masks.get(position)
        if mask is not None:
            return mask
        mask = np.zeros(self.grammar.mask_bytes, dtype=np.uint8)
        try:
            self._matcher.fill_mask(mask)
        except GrammarError as error:
            self._fail(error, output_ids)
            return None
        may_stop = self._matcher.is_accepting
        for token_id in self._other_ends:
            mask[token_id >> 3] &= ~np.uint8(1 << (token_id & 7))
        for token_id in self._stops:
            if token_id >> 3 < len(mask):
                bit = np.uint8(1 << (token_id & 7))
                mask[token_id >> 3] = mask[token_id >> 3] | bit if may_stop else mask[token_id >> 3] & ~bit
        if not position and (opening := self._opening) is not None:
            mask[opening >> 3] |= np.uint8(1 << (opening & 7))
        self._masks[position] = mask
        return mask

    def _walk(self, output_ids: Sequence[int]) -> bool:
        """Bring the matcher to the prefix. False if the grammar does not allow it; the matcher then stands before."""
        ids = list(output_ids)
        if self._has_failed(ids):
            return False
        if self.error is not None:
            self._start_over()
        try:
            self._go_back(_common_length(self._walked, ids))
            if self._reasoning is not None and self._thinking == len(self._walked):
                self._thinking = None  # the matcher has taken nothing yet, and another beginning may be a thinking
            if self._thinking is None:
                self._think(ids)
            missing = ids[len(self._walked) :]
            if missing and self._thinking is not None:
                taken = self._matcher.advance(missing)
                self._walked += missing[:taken]
        except GrammarError as error:
            self._fail(error, ids)
            return False
        return len(self._walked) == len(ids)

    def _has_failed(self, output_ids: Sequence[int]) -> bool:
        """Whether the grammar cannot be followed to the prefix."""
        return self.error is not None and list(output_ids[: len(self._failed)]) == self._failed

    def _fail(self, error: GrammarError, output_ids: Sequence[int]) -> None:
        self.error, self._failed = error, list(output_ids)

    def _start_over(self) -> None:
        """Take a new matcher: the draft that has broken the old one was not accepted."""
        self.error = None
        self._matcher = self.grammar.matcher()
        self._walked, self._thinking = [], 0 if self._reasoning is None else None
        self._masks.clear()

    def _go_back(self, length: int) -> None:
        if length == len(self._walked):
            return
        if self._thinking is not None:
            begin = self._thinking
            self._matcher.rewind(len(self._walked) - max(length, begin))
            if length < begin:
                self._thinking = None
        del self._walked[length:]
        for position in [kept for kept in self._masks if kept > length]:
            del self._masks[position]

    def _think(self, ids: list[int]) -> None:
        """Walk on to the end of the thinking, or to the end of the prefix if it still lasts."""
        assert self._reasoning is not None, "only a model that thinks is walked here"
        end = reasoning_end(ids, self._reasoning)
        if end is not None:
            self._walked, self._thinking = ids[:end], end
            return
        self._walked = ids


@dataclass(frozen=True, slots=True)
class PositionMasks:
    """A ``MaskJob``: the masks behind ``output_ids`` and behind each draft token."""

    grammar: OutputGrammar
    output_ids: Sequence[int]
    draft_ids: Sequence[int]

    def compute(self) -> None:
        """Compute and keep them."""
        self.grammar.prepare(self.output_ids, self.draft_ids)

    def condemn(self, reason: str) -> None:
        """Give the grammar up."""
        self.grammar.condemn(reason)


def _common_length(one: list[int], other: list[int]) -> int:
    """Number of leading tokens in which two outputs agree."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    # The first length at which they differ.
    return bisect_left(range(limit), 1, key=lambda place: one[: place + 1] != other[: place + 1])
