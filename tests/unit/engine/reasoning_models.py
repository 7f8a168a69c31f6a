"""Forms of thinking over the tokens of tiny models, and an independent account of a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.reasoning import ReasoningForm

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENING, FIRST, SECOND, THIRD = 5, 7, 8, 9


def one_token(*, starts_open: bool = False) -> ReasoningForm:
    """Each marker is a token of its own, as with Qwen3."""
    return ReasoningForm(
        name="think",
        opening="<think>",
        end="</think>",
        opening_ids=(OPENING,),
        closings=((FIRST,),),
        pieces={OPENING: "<think>", FIRST: "</think>", 3: " "},
        enders=frozenset({FIRST}),
        starts_open=starts_open,
    )


def many_tokens(*, starts_open: bool = False) -> ReasoningForm:
    """The closing is three tokens, the end the last two of them, as with channels."""
    return ReasoningForm(
        name="harmony",
        opening="<open>",
        end="<b><c>",
        opening_ids=(OPENING,),
        closings=((FIRST, SECOND, THIRD),),
        pieces={OPENING: "<open>", SECOND: "<b>", THIRD: "<c>", 3: " "},
        enders=frozenset({THIRD}),
        starts_open=starts_open,
    )


class BudgetByHand:
    """A logits processor for transformers' generate that counts as a person would; knows nothing of ``ReasoningForm``.

    Args:
        prompt_length: Tokens before the output.
        budget: Most tokens of thinking.
        closing: What closes it.
        end: The tokens that end it.
        starts_open: The output begins within the thinking.
    """

    def __init__(self, prompt_length, budget, closing, end, *, starts_open):
        self.prompt_length, self.budget, self.closing, self.end = prompt_length, budget, tuple(closing), tuple(end)
        self.starts_open = starts_open

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        output = tuple(input_ids[0, self.prompt_length :].tolist())
        forced = self.forced(output)
        if forced is None:
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[0, forced] = 0
        return only

    def forced(self, output: Sequence[int]) -> int | None:
        blanks = 0
        while blanks < len(output) and output[blanks] == 3:
            blanks += 1
        if self.starts_open:
            thought = tuple(output)
        elif tuple(output[blanks : blanks + 1]) == (OPENING,):
            thought = tuple(output[blanks + 1 :])
        else:
            return None
        if any(thought[i : i + len(self.end)] == self.end for i in range(len(thought))) or len(thought) < self.budget:
            return None
        begun = max(n for n in range(len(self.closing)) if thought[len(thought) - n :] == self.closing[:n])
        return self.closing[begun]
