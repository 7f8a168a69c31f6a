"""LookupDrafter: proposes the tokens that followed an earlier occurrence of the last tokens. No model, no torch.

The ideas come from Saxena, "Prompt Lookup Decoding" (2023), and Oliaro et al., "SuffixDecoding: Extreme Speculative
Decoding for Emerging AI Applications" (arXiv 2411.04975).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.drafters.match_calibrator import MatchCalibrator
from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH, MIN_MATCH, NgramIndex
from helix_jobs.engine.speculation.drafters.output_corpus import END_OF_OUTPUT, OutputCorpus
from helix_jobs.engine.speculation.drafters.protocol import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.turn import Turn

# Trade-off: a larger corpus keeps rarer and older outputs; an indexed token takes 100 to 200 bytes.
DEFAULT_MAX_CORPUS_TOKENS: Final = 131_072
# Tokens at the end of the prompt that enter the corpus before the output. Prompts of one template end alike, so outputs
# can be matched from their first token on.
_PROMPT_CONTEXT: Final = 8
# Less likely tokens are not proposed: each costs a row of the target pass and hardly ever saves one. Trade-off: a lower
# floor pays only where a row costs next to nothing. All rates below are above it: only votes end a proposal.
_CONFIDENCE_FLOOR: Final = 0.15
# With a fixed depth a match of this many tokens replaces a computed draft. Match length decides, not confidence:
# confidence is learned from other requests, and a seeded output must not depend on them.
_TRUSTED_MATCH: Final = 4
# Where calibration starts: the smoothed fraction of lone continuations that were right, of 1,501 tokens from own text
# and 181 from the corpus. Measured on replayed greedy bf16 outputs of SmolLM2-135M-Instruct (45 Spec-Bench prompts:
# summarization, rag, extraction, qa, math, coding; 22 jobs of three templates). Greedy outputs of so small a model
# repeat themselves; other models will differ.
_OWN_RATES: Final = (0.52, 0.68, 0.70, 0.76, 0.84, 0.88, 0.91)
_CORPUS_RATES: Final = (0.19, 0.32, 0.45, 0.50, 0.50, 0.65, 0.85)


@dataclass(frozen=True, slots=True)
class LookupMatch:
    """The continuation of the longest match.

    Attributes:
        token_ids: The proposed continuation; empty when nothing matched.
        match_length: Tokens of context that matched, at most ``MAX_MATCH``; 0 when nothing is proposed.
        confidence: For each token the estimated probability that it is accepted, given that those before it are.
        from_corpus: Whether it was copied from other requests' outputs, not from the sequence's own text.
    """

    token_ids: tuple[int, ...]
    match_length: int
    confidence: tuple[float, ...]
    from_corpus: bool = False


NO_MATCH: Final = LookupMatch((), 0, ())


class LookupDrafter:
    """Looks up the last tokens of a sequence in its own text and in the outputs finished so far in this run.

    The longest match wins; at equal length, own text before the corpus. Each proposed token is the most frequent among
    the continuations, then the most recent. A copy that reaches the end of the own text continues with its own copied
    tokens.

    The proposed tokens depend on texts alone; only the confidence depends on learned acceptance. A sampled request
    looks up its own text only, so its proposals, and with them the use of its random numbers, are the same in any
    batch. A greedy output is the same whatever is proposed.

    Args:
        max_corpus_tokens: Most tokens in the corpus; 0 turns it off.
    """

    name: Final = "lookup"

    def __init__(self, *, max_corpus_tokens: int = DEFAULT_MAX_CORPUS_TOKENS) -> None:
        self._corpus = OutputCorpus(max_corpus_tokens)
        self._indexes: dict[str, NgramIndex] = {}
        # The latest match of each sequence.
        self._matches: dict[str, LookupMatch] = {}
        # These two decide where a proposal ends and never learn from verdicts.
        self._own_prior = MatchCalibrator(_OWN_RATES)
        self._corpus_prior = MatchCalibrator(_CORPUS_RATES)
        self._greedy = MatchCalibrator(_OWN_RATES)
        self._sampled = MatchCalibrator(_OWN_RATES)
        self._greedy_corpus = MatchCalibrator(_CORPUS_RATES)

    def propose(self, turns: SequenceOf[Turn]) -> None:
        """Give each turn the draft found for it, if any."""
        for turn in turns:
            match = self.match(turn.sequence, turn.depth, turn.forced)
            if match is not NO_MATCH:
                is_trusted = match.match_length >= _TRUSTED_MATCH
                turn.draft = Draft(match.token_ids, confidence=match.confidence, is_trusted=is_trusted)

    def match(self, sequence: Sequence, limit: int, forced: SequenceOf[int] = ()) -> LookupMatch:
        """Propose up to ``limit`` tokens behind the sequence's last token and the ``forced`` ones that follow it."""
        tokens = sequence.token_ids
        if limit <= 0 or len(tokens) + len(forced) < MIN_MATCH:
            return NO_MATCH
        context = [*tokens[-MAX_MATCH:], *forced][-MAX_MATCH:]
        index = self._index_of(sequence)
        length, followers = index.find(context)
        text, from_corpus = [*tokens, *forced] if forced else tokens, False
        if length < MAX_MATCH and sequence.params.is_greedy:
            corpus_length, corpus_followers = self._corpus.find(context)
            if corpus_length > length:
                length, followers, text, from_corpus = corpus_length, corpus_followers, self._corpus.tokens, True
        prior = self._corpus_prior if from_corpus else self._own_prior
        token_ids, votes = _follow(text, length, followers, limit, prior)
        if not token_ids:
            return NO_MATCH
        calibrator = self._calibrator(sequence, from_corpus=from_corpus)
        match = LookupMatch(tuple(token_ids), length, calibrator.confidences(length, votes), from_corpus)
        self._matches[sequence.request_id] = match
        return match

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn how many tokens of the sequence's latest match were accepted."""
        match = self._matches.get(sequence.request_id, NO_MATCH)
        calibrator = self._calibrator(sequence, from_corpus=match.from_corpus)
        calibrator.observe(match.match_length, match.confidence[:num_drafted], num_accepted)

    def forget(self, sequence: Sequence) -> None:
        """Add a finished sequence's output to the corpus; keep nothing of aborted or failed ones."""
        self._indexes.pop(sequence.request_id, None)
        self._matches.pop(sequence.request_id, None)
        is_finished = sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        if is_finished and sequence.num_output_tokens:
            self._corpus.add(sequence.token_ids[max(0, sequence.num_prompt_tokens - _PROMPT_CONTEXT) :])

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Do nothing: this drafter has no cache."""

    @property
    def num_entries(self) -> int:
        """Index entries held in memory, for all sequences and the corpus."""
        return self._corpus.num_entries + sum(index.num_entries for index in self._indexes.values())

    def _index_of(self, sequence: Sequence) -> NgramIndex:
        """The sequence's own index, up to its last token; rebuilt for a new or shortened text."""
        tokens = sequence.token_ids
        index = self._indexes.get(sequence.request_id)
        if index is None or index.tokens is not tokens or index.num_indexed + MIN_MATCH > len(tokens):
            index = self._indexes[sequence.request_id] = NgramIndex(tokens)
        index.extend()
        return index

    def _calibrator(self, sequence: Sequence, *, from_corpus: bool) -> MatchCalibrator:
        """The calibrator of this kind of match: acceptance differs by sampling and by source."""
        if not sequence.params.is_greedy:
            return self._sampled
        return self._greedy_corpus if from_corpus else self._greedy


def _follow(
    text: list[int], length: int, followers: list[int], limit: int, prior: MatchCalibrator
) -> tuple[list[int], list[tuple[int, int]]]:
    """Copy token by token from the occurrences, dropping those that disagree with the copy so far.

    Returns:
        The copied tokens, and for each the number of occurrences that voted for it and the number that voted.
    """
    if not followers:
        return [], []
    # Usually there is one occurrence, or all continue alike: no need to count.
    copy = text[followers[0] : followers[0] + limit]
    if len(copy) == limit and END_OF_OUTPUT not in copy and all(text[f : f + limit] == copy for f in followers[1:]):
        return copy, [(len(followers), len(followers))] * limit
    copied: list[int] = []
    votes: list[tuple[int, int]] = []
    end = len(text)
    while len(copied) < limit:
        offset = len(copied)
        following = [text[f + offset] if f + offset < end else copied[f + offset - end] for f in followers]
        token = following[0]
        num_agreeing = following.count(token)
        if num_agreeing < len(following):
            # The most recent of the most frequent tokens.
            token = max(dict.fromkeys(following), key=following.count)
            num_agreeing = following.count(token)
            followers = [f for f, candidate in zip(followers, following, strict=True) if candidate == token]
            if prior.confidence(length + offset, num_agreeing, len(following)) < _CONFIDENCE_FLOOR:
                break
        if token == END_OF_OUTPUT:
            break
        copied.append(token)
        votes.append((num_agreeing, len(following)))
    return copied, votes
