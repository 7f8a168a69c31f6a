"""LogitsProcessor: what changes a position's logits before its token is chosen.

The *shaped* logits of a position are those that the model gives it after all processors of its request, in their order.
The target's are shaped and the draft model's alike, so that a draft is drawn from what verification compares it with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.sampling_params import SamplingParams


class LogitsProcessor(Protocol):
    """Shapes the logits of a position of one request, given what stands before it.

    It is told the tokens that stand there each time and keeps nothing of them. A rejected draft, a preemption or a step
    that is repeated leaves nothing to undo.
    """

    @property
    def keeps_argmax(self) -> bool:
        """Whether the most likely token always stays the most likely: then a greedy request has no use for it."""

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Change ``[vocab_size]`` fp32 logits in place.

        Args:
            logits: Of one position, on the CPU.
            output_ids: Output tokens before it, drafted ones included.
        """


class RepetitionPenalty:
    """Makes tokens of prompt and output less likely, after Keskar et al. 2019 (CTRL), as transformers does.

    Args:
        penalty: Divides scores above 0 and multiplies those below.
        prompt_ids: The prompt.
    """

    keeps_argmax: Final = False

    def __init__(self, penalty: float, prompt_ids: Sequence[int]) -> None:
        self._penalty = penalty
        self._prompt_ids = frozenset(prompt_ids)

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Each token counts once, however often it occurs."""
        seen = torch.tensor(list(self._prompt_ids.union(output_ids)), dtype=torch.int64)
        scores = logits[seen]
        logits[seen] = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)


class PresenceFrequencyPenalty:
    """Makes tokens of the output less likely, as OpenAI defines it.

    Args:
        presence: Taken off once for each token that occurs.
        frequency: Taken off for each time that it does.
    """

    keeps_argmax: Final = False

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """The prompt does not count."""
        if output_ids:
            tokens, counts = torch.unique(torch.tensor(output_ids, dtype=torch.int64), return_counts=True)
            logits[tokens] -= self._presence + self._frequency * counts.to(logits.dtype)


def processors_of(params: SamplingParams, prompt_ids: Sequence[int]) -> tuple[LogitsProcessor, ...]:
    """What a request asks for, in transformers' order. A new processor is a class above and a line here."""
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(params.repetition_penalty, prompt_ids))
    if params.presence_penalty or params.frequency_penalty:
        processors.append(PresenceFrequencyPenalty(params.presence_penalty, params.frequency_penalty))
    return tuple(processors)


def shape_logits(logits: torch.Tensor, processors: Sequence[LogitsProcessor], output_ids: Sequence[int]) -> None:
    """Let all processors of a request change one position's logits in place; see ``LogitsProcessor.shape``."""
    for processor in processors:
        processor.shape(logits, output_ids)
