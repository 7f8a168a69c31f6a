"""ReasoningBudget: closes a thinking that has grown as long as it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.reasoning import Phase, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.request import EncodedRequest


class ReasoningBudget:
    """A logits processor that allows only the closing's next token once the budget is spent.

    What it does at a position follows from the tokens before it alone, so it is the same in target and draft, and after
    a rejected draft or a preemption.

    Args:
        budget: Most tokens of thinking, its markers excluded; 0 closes it at once.
        form: How the model marks its thinking.
    """

    keeps_argmax: Final = False

    def __init__(self, budget: int, form: ReasoningForm) -> None:
        self._budget = budget
        self._form = form

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Leave one token, if the thinking must close; otherwise change nothing."""
        token_id = forced_token(output_ids, self._form, self._budget)
        if token_id is not None:
            logits.fill_(float("-inf"))
            logits[token_id] = 0.0


def forced_token(output_ids: Sequence[int], form: ReasoningForm, budget: int) -> int | None:
    """The token of the closing that must come next; None while the budget is not spent, and in the answer.

    A closing that the model has begun by itself is completed, not begun anew.
    """
    if len(output_ids) < budget:  # before the thinking is looked for, which takes longer the longer it is
        return None
    place = place_of(output_ids, form)
    thought = len(output_ids) - place.start
    if place.phase is not Phase.THINKING or thought < budget:
        return None
    closing = form.closing_ids
    for count in range(min(len(closing), thought), 0, -1):
        if tuple(output_ids[len(output_ids) - count :]) == closing[:count]:
            return closing[count] if count < len(closing) else None
    return closing[0]


def budget_of(request: EncodedRequest) -> tuple[ReasoningBudget, ...]:
    """The processor that keeps a request's budget, behind all others; none for a request without one."""
    if request.reasoning is None or request.max_reasoning_tokens is None:
        return ()
    return (ReasoningBudget(request.max_reasoning_tokens, request.reasoning),)
