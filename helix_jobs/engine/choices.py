"""Choices: the answers of each request that the engine holds, one sequence for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.sampling.random_numbers import choice_seed
from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.request import EncodedRequest, GenerationResult
    from helix_jobs.engine.schedule.sequence import Sequence


def joined(results: SequenceOf[GenerationResult]) -> GenerationResult:
    """The result of a request, from those of its choices in order.

    An error of one choice is the request's error; a request of which a choice was aborted was aborted.
    """
    first, *others = results
    failed = next((result for result in results if result.error is not None), None)
    if failed is not None:
        first = replace(first, finish_reason=None, error=failed.error)
    elif any(result.finish_reason is FinishReason.ABORTED for result in results):
        was_lost = any(result.lost_with_server for result in results)
        first = replace(first, finish_reason=FinishReason.ABORTED, lost_with_server=was_lost)
    siblings = tuple(replace(result, request_id=first.request_id) for result in others)
    return replace(first, siblings=siblings) if siblings else first


def already_held(request: EncodedRequest) -> InvalidRequestError:
    """The error for a second request under an id that the engine holds."""
    return InvalidRequestError(f"request {request.request_id} is already in the engine; finish or abort it first")


@dataclass(slots=True)
class _Group:
    """The sequences of one request, and the results of those that have ended, by choice."""

    request_id: str
    sequences: tuple[Sequence, ...]
    ended: dict[int, GenerationResult] = field(default_factory=dict)


class Choices:
    """The sequences that the engine holds, grouped by the request that they answer."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        # The id of each choice -> its request's group.
        self._group_of: dict[str, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences, ended choices of unended requests included."""
        for group in self._groups.values():
            yield from group.sequences

    def split(self, request: EncodedRequest) -> list[EncodedRequest]:
        """One request for each of the ``n`` choices, with an id and a seed of its own.

        The first keeps the request's id and seed, so its answer is that of a request for one answer.

        Trade-off: choices share the prompt's full blocks through the prefix cache, and each computes the prompt's last
        tokens itself, at most ``block_size`` of them. To copy the last block would save these few tokens, and need a
        write to the cache between two steps.

        Raises:
            InvalidRequestError: The request is already held.
        """
        others = (
            replace(
                request,
                request_id=f"{request.request_id}#{choice}",
                seed=choice_seed(request.seed, choice),
                choice=choice,
            )
            for choice in range(1, request.sampling_params.n)
        )
        choices = [request, *others]
        if any(choice.request_id in self._group_of for choice in choices):
            raise already_held(request)
        return choices

    def add(self, sequences: SequenceOf[Sequence]) -> None:
        """Hold a request's sequences, one for each of its choices in order."""
        group = _Group(sequences[0].request_id, tuple(sequences))
        self._groups[group.request_id] = group
        self._group_of.update((sequence.request_id, group) for sequence in sequences)

    def of(self, request_id: str) -> tuple[Sequence, ...]:
        """The sequences of a request; none if it is unknown."""
        group = self._groups.get(request_id)
        return () if group is None else group.sequences

    def beside(self, sequence: Sequence) -> tuple[Sequence, ...]:
        """The sequences of the request that this one answers, itself included."""
        return self._group_of[sequence.request_id].sequences

    def end(self, sequence: Sequence, result: GenerationResult) -> GenerationResult | None:
        """Note how a choice ended; return the request's result when it was the last one, and forget the request."""
        group = self._group_of[sequence.request_id]
        group.ended[result.choice] = result
        if len(group.ended) < len(group.sequences):
            return None
        self.forget(sequence)
        return joined([group.ended[choice] for choice in range(len(group.sequences))])

    def forget(self, sequence: Sequence) -> None:
        """Forget the request that a sequence answers, and all its sequences."""
        group = self._group_of[sequence.request_id]
        del self._groups[group.request_id]
        for one in group.sequences:
            del self._group_of[one.request_id]

    def request_ids(self, sequences: Iterable[Sequence]) -> list[str]:
        """The ids of the requests that these sequences answer, each once."""
        return list(dict.fromkeys(self._group_of[sequence.request_id].request_id for sequence in sequences))

    def clear(self) -> None:
        """Forget every request."""
        self._groups.clear()
        self._group_of.clear()
