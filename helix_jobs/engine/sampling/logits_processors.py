"""LogitsProcessor: changes a position's logits before its token is chosen.

The *shaped* logits of a position are the model's logits after all processors of its request, in order. Target and draft
logits are shaped alike, so that drafts are drawn from the distribution that verification compares with the target's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch

from helix_jobs.engine.sampling.token_masks import AllowedTokens, BadWords, MinTokens

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from helix_jobs.engine.sampling_params import SamplingParams


class LogitsProcessor(Protocol):
    """Shapes the logits of one position of a request, given the tokens before it.

    A processor receives these tokens with each call and keeps none of them, so a rejected draft, a preemption or a
    repeated step leaves nothing to undo.
    """

    @property
    def keeps_argmax(self) -> bool:
        """Whether the most likely token always stays the most likely: a greedy request can then skip the processor."""

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Change ``[vocab_size]`` fp32 logits in place.

        Args:
            logits: Logits of one position, on the CPU.
            output_ids: Output tokens before it, draft tokens included.
        """


class LogitBias:
    """Adds a number to the logits of some tokens, as OpenAI defines it.

    Args:
        biases: Pairs of token id, within the vocabulary, and number; each id once.
    """

    keeps_argmax: Final = False

    def __init__(self, biases: Sequence[tuple[int, float]]) -> None:
        self._token_ids = torch.tensor([token_id for token_id, _ in biases], dtype=torch.int64)
        self._biases = torch.tensor([bias for _, bias in biases], dtype=torch.float32)

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:  # noqa: ARG002  (the protocol's)
        """Add the numbers."""
        logits[self._token_ids] += self._biases


class RepetitionPenalty:
    """Makes tokens of prompt and output less likely, after Keskar et al. 2019 (CTRL), as transformers does.

    Args:
        penalty: Divides positive logits and multiplies negative ones.
        prompt_ids: Tokens of the prompt.
    """

    keeps_argmax: Final = False

    def __init__(self, penalty: float, prompt_ids: Sequence[int]) -> None:
        self._penalty = penalty
        self._prompt_ids = frozenset(prompt_ids)

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Penalise each seen token once, however often it occurs."""
        seen = torch.tensor(list(self._prompt_ids.union(output_ids)), dtype=torch.int64)
        scores = logits[seen]
        logits[seen] = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)


class PresenceFrequencyPenalty:
    """Makes tokens of the output less likely, as OpenAI defines it.

    Args:
        presence: Subtracted once from each token that occurs.
        frequency: Subtracted once for each occurrence.
    """

    keeps_argmax: Final = False

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Penalise output tokens only, not the prompt's."""
        if output_ids:
            tokens, counts = torch.unique(torch.tensor(output_ids, dtype=torch.int64), return_counts=True)
            logits[tokens] -= self._presence + self._frequency * counts.to(logits.dtype)


def processors_of(
    params: SamplingParams,
    prompt_ids: Sequence[int],
    *,
    bad_words: Sequence[Sequence[int]] = (),
    end_ids: Collection[int] = (),
) -> tuple[LogitsProcessor, ...]:
    """The processors a request asks for, in transformers' order. To add one, add a class and a line here.

    Args:
        params: What the request asks for; its token ids are within the vocabulary.
        prompt_ids: Tokens of its prompt.
        bad_words: The token ids of ``params.bad_words``, which only the tokenizer knows.
        end_ids: Tokens within the vocabulary that would end its output.
    """
    processors: list[LogitsProcessor] = []
    if params.logit_bias:
        processors.append(LogitBias(params.logit_bias))
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(params.repetition_penalty, prompt_ids))
    if params.presence_penalty or params.frequency_penalty:
        processors.append(PresenceFrequencyPenalty(params.presence_penalty, params.frequency_penalty))
    if bad_words:
        processors.append(BadWords(bad_words, prompt_ids))
    if params.min_tokens and end_ids:
        processors.append(MinTokens(params.min_tokens, end_ids))
    if params.allowed_token_ids is not None:
        processors.append(AllowedTokens(params.allowed_token_ids))
    return tuple(processors)


def shape_logits(logits: torch.Tensor, processors: Sequence[LogitsProcessor], output_ids: Sequence[int]) -> None:
    """Apply all processors of a request to one position's logits in place; see ``LogitsProcessor.shape``."""
    for processor in processors:
        processor.shape(logits, output_ids)
