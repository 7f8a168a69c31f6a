"""FakeEngine, which ships with the package: tests of the queue need neither a model nor torch."""

from __future__ import annotations

import os
import threading
import time
from bisect import insort_right
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.adapter_choice import chosen_adapter
from helix_jobs.engine.choices import joined
from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.engine.fake_logprobs import fake_logprobs, fake_scores
from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.protocol import EngineCounters, EngineInfo
from helix_jobs.engine.request import EncodedRequest, FinishReason, GenerationResult, Request
from helix_jobs.errors import EngineError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TOKENS_PER_BLOCK: Final = 16
# The word of a prompt in whose place the answer has a digit drawn from the request's seed, from 0 to 5.
DICE: Final = "{dice}"
_FACES: Final = 6
# Fraction of a step's time that the fake engine reports as drafting.
_DRAFT_SHARE: Final = 0.2


def fake_output(
    prompt: str, max_tokens: int, *, ignore_eos: bool = False, seed: int = 0, choice: int = 0
) -> tuple[str, FinishReason]:
    """The fake engine's answer: the prompt's words in turn, once; with ``ignore_eos`` again and again.

    The word ``DICE`` comes out as a digit that only the seed decides. Each further choice begins one word later, and
    goes on with the first word after the last.
    """
    words = [word if word != DICE else str(seed % _FACES) for word in prompt.split()] or ["?"]
    count = max_tokens if ignore_eos else min(max_tokens, len(words))
    reason = FinishReason.STOP if count == len(words) and not ignore_eos else FinishReason.LENGTH
    return " ".join(words[(choice + i) % len(words)] for i in range(count)), reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _EncodedText(EncodedRequest):
    """An encoded request with its text, from which the output is made."""

    text: str
    has_constraint: bool = False


@dataclass(frozen=True, slots=True)
class EmittedWords:
    """The words of an output so far; satisfies ``PartialOutput``."""

    request: EncodedRequest
    words: tuple[str, ...]

    def read(self) -> PartialText:
        """The words as a text."""
        return PartialText(" ".join(self.words))


@dataclass(slots=True, eq=False)
class _Sequence:
    """One choice of a request inside the fake engine."""

    request: EncodedRequest
    prompt: str
    words: tuple[str, ...]
    reason: FinishReason
    added: float
    admitted: float | None = None
    first_token: float | None = None
    emitted: int = 0
    steps: int = 0
    draft_tokens: int = 0
    cached_prompt_tokens: int = 0


class FakeEngine:
    """Satisfies ``EngineProtocol`` without a model: a token is a word, the output echoes the prompt.

    Each step takes ``step_seconds`` and emits up to ``depth + 1`` tokens for each of at most ``max_batch_size``
    choices of requests, highest priority first, then oldest first, so batching, waiting and speculation figures behave
    like the real engine's. A prompt that begins like the one admitted before it shares that beginning, in whole blocks.
    Constraints are not kept, and results say so. Log probabilities and the scores of options are made up from the words
    alone.

    Args:
        max_batch_size: Choices that run at once.
        step_seconds: How long a step takes.
        depth: Tokens "drafted" for each request and step; all of them that still fit are accepted.
        max_model_len: Prompt plus output tokens at most.
        faults: Texts that make requests misbehave.
        executions: A file, for all processes, that gets a line with a request's id whenever it begins to run.
        sleep: How a step passes its time; tests replace it.
        adapters: Names that requests may choose; each answers like the engine without it, and is named in results.

    Attributes:
        outage: See ``EngineInfo``; set from outside.
    """

    energy = None

    def __init__(
        self,
        *,
        max_batch_size: int = 8,
        step_seconds: float = 0.0,
        depth: int = 3,
        max_model_len: int = 4096,
        faults: FakeFaults | None = None,
        executions: Path | None = None,
        sleep: Callable[[float], object] = time.sleep,
        adapters: tuple[str, ...] = (),
    ) -> None:
        self._step_seconds = step_seconds
        self._depth = depth
        self._faults = faults or FakeFaults()
        # Opened here, so that a process that runs out of descriptors can still write; for appending, so that lines of
        # several processes do not mix. Closed when the process ends.
        self._executions = (
            None if executions is None else os.open(executions, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        )
        self._sleep = sleep
        self._sequences: list[_Sequence] = []
        # Request id -> the results of its choices that have ended.
        self._choices: dict[str, list[GenerationResult]] = {}
        self._ended: list[GenerationResult] = []
        self._last_prompt: list[str] = []
        self._counters = EngineCounters()
        self._closed = threading.Event()
        self.outage: str | None = None
        self._info = EngineInfo(
            target_model="fake-target",
            draft_model="fake-draft" if depth else None,
            device="fake",
            dtype="float32",
            kernels="torch",
            speculation_depth=None if depth else 0,
            max_batch_size=max_batch_size,
            max_model_len=max_model_len,
            num_blocks=max_batch_size * max(1, max_model_len // _TOKENS_PER_BLOCK),
            block_size=_TOKENS_PER_BLOCK,
            kv_cache_bytes=0,
            chat="messages, no thinking, no tools",
            adapters=adapters,
        )

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        max_batch_size: int = 8,
        adapters: tuple[str, ...] = (),
    ) -> FakeEngine:
        """Build from ``HELIX_FAKE_STEP_SECONDS``, ``_EXECUTIONS`` and the fault variables (see ``FakeFaults``)."""
        values = os.environ if environment is None else environment
        executions = values.get("HELIX_FAKE_EXECUTIONS")
        return cls(
            max_batch_size=max_batch_size,
            step_seconds=float(values.get("HELIX_FAKE_STEP_SECONDS", "0.002")),
            faults=FakeFaults.from_environment(values),
            executions=Path(executions) if executions else None,
            adapters=adapters,
        )

    @property
    def info(self) -> EngineInfo:
        """A made-up device named ``fake``."""
        return replace(self._info, outage=self.outage)

    def encode(self, request: Request) -> EncodedRequest:
        """Give every word a token id. Thread-safe, as it changes no state.

        Raises:
            InvalidRequestError: There is no such adapter.
            PromptTooLongError: Prompt and one new token exceed ``max_model_len``.
        """
        adapter = chosen_adapter(request, self._info.adapters)
        text = _text(request)
        words = whole = tuple(text.split())
        truncation = request.truncate_prompt
        if truncation is not None:
            room = truncation.tokens or max(1, self._info.max_model_len - max(1, request.sampling_params.max_tokens))
            words = tuple(whole[place] for place in truncation.kept(range(len(whole)), room, None))
        if len(words) >= self._info.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(words)} tokens and the context holds {self._info.max_model_len}; shorten it"
            )
        return _EncodedText(
            request_id=request.request_id,
            prompt_token_ids=tuple(range(len(words))),
            sampling_params=request.sampling_params,
            seed=request.seed,
            dropped_prompt_tokens=None if truncation is None else len(whole) - len(words),
            score_choices=request.score_choices,
            text=text if words is whole else " ".join(words),
            has_constraint=request.constraint is not None,
            adapter=adapter,
            stream=request.stream,
            priority=request.priority,
        )

    def add_request(self, request: EncodedRequest) -> None:
        """Queue an encoded request."""
        prompt = request.text if isinstance(request, _EncodedText) else _spelt(request.prompt_token_ids)
        params = request.sampling_params
        self._choices[request.request_id] = []
        for choice in range(params.n):
            output, reason = fake_output(
                prompt, params.max_tokens, ignore_eos=params.ignore_eos, seed=request.seed, choice=choice
            )
            if request.score_choices is not None:
                output, reason = "", FinishReason.STOP
            made = _Sequence(replace(request, choice=choice), prompt, tuple(output.split()), reason, time.monotonic())
            insort_right(self._sequences, made, key=lambda one: -one.request.priority)

    def abort(self, request_id: str) -> None:
        """End all choices of a request; the next step returns its result."""
        for sequence in [one for one in self._sequences if one.request.request_id == request_id]:
            self._end(sequence, FinishReason.ABORTED)

    def has_unfinished(self) -> bool:
        """Whether requests or unreturned results are left."""
        return bool(self._sequences or self._ended)

    def step(self) -> list[GenerationResult]:
        """Emit tokens for the requests of the highest priority, and of these for the oldest.

        Raises:
            RuntimeError: A prompt in the batch holds the ``crash`` text.
        """
        started = time.perf_counter()
        batch = self._sequences[: self._info.max_batch_size]
        for sequence in batch:
            if sequence.admitted is None:
                self._admit(sequence)
            self._misbehave(sequence.prompt)
        scheduled = time.perf_counter()
        if batch:
            self._sleep(self._step_seconds)
        computed = time.perf_counter()
        draft_tokens = self._counters.draft_tokens
        for sequence in batch:
            self._advance(sequence)
        draft_share = _DRAFT_SHARE if self._counters.draft_tokens > draft_tokens else 0.0
        self._count(
            steps=1,
            sequence_steps=len(batch),
            decode_sequence_steps=len(batch),
            schedule_seconds=scheduled - started,
            draft_seconds=draft_share * (computed - scheduled),
            target_seconds=(1 - draft_share) * (computed - scheduled),
            verify_seconds=time.perf_counter() - computed,
        )
        blocks = sum(-(-len(s.words) // _TOKENS_PER_BLOCK) for s in batch)
        reasons = dict(self._counters.depth_reasons)
        if self._depth:
            reason = "model" if draft_share else "off:nothing"
            reasons[reason] = reasons.get(reason, 0) + 1
        self._counters = replace(
            self._counters,
            peak_blocks=max(self._counters.peak_blocks, blocks),
            depth_reasons=reasons,
        )
        ended, self._ended = self._ended, []
        return ended

    def partials(self) -> list[EmittedWords]:
        """The unfinished outputs of requests with a ``stream``."""
        begun = (one for one in self._sequences if one.emitted and one.request.stream is not None)
        return [EmittedWords(one.request, one.words[: one.emitted]) for one in begun]

    def running(self) -> list[str]:
        """Ids of the requests with a choice in the batch."""
        admitted = (one.request.request_id for one in self._sequences if one.admitted is not None)
        return list(dict.fromkeys(admitted))

    def counters(self) -> EngineCounters:
        """Totals since the engine was built."""
        return self._counters

    def close(self) -> None:
        """Let a stalled step continue."""
        self._closed.set()

    def _admit(self, sequence: _Sequence) -> None:
        words = sequence.prompt.split()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, self._last_prompt, strict=False)))
        num_tokens = len(sequence.request.prompt_token_ids)
        # As in the real engine, the last prompt token is always computed: its logits are needed.
        sequence.cached_prompt_tokens = min(same, max(0, num_tokens - 1)) // _TOKENS_PER_BLOCK * _TOKENS_PER_BLOCK
        sequence.admitted = time.monotonic()
        self._last_prompt = words
        if sequence.request.choice:
            return
        if self._executions is not None:
            os.write(self._executions, f"{sequence.request.request_id}\n".encode("ascii"))
        self._count(prompt_tokens=num_tokens, cached_prompt_tokens=sequence.cached_prompt_tokens)

    def _misbehave(self, prompt: str) -> None:
        if _matches(self._faults.die, prompt):
            os._exit(86)
        if _matches(self._faults.stall, prompt):
            self._closed.wait()
        if _matches(self._faults.crash, prompt):
            raise RuntimeError("the fake engine was told to crash")

    def _advance(self, sequence: _Sequence) -> None:
        if _matches(self._faults.hang, sequence.prompt):
            return
        if sequence.words:  # otherwise the prompt or its options are scored
            now = time.monotonic()
            drafted = min(self._depth, len(sequence.words) - sequence.emitted - 1)
            sequence.first_token = now if sequence.first_token is None else sequence.first_token
            sequence.emitted += drafted + 1
            sequence.draft_tokens += drafted
            sequence.steps += 1
            self._count(completion_tokens=drafted + 1, draft_tokens=drafted, accepted_tokens=drafted)
        failed = _matches(self._faults.fail, sequence.prompt)
        if failed or sequence.emitted == len(sequence.words):
            self._end(sequence, None if failed else sequence.reason)

    def _end(self, sequence: _Sequence, reason: FinishReason | None) -> None:
        request = sequence.request
        self._sequences.remove(sequence)
        ended = self._choices[request.request_id]
        ended.append(self._result(sequence, reason))
        if len(ended) == request.sampling_params.n:
            del self._choices[request.request_id]
            self._ended.append(joined(sorted(ended, key=lambda result: result.choice)))

    def _result(self, sequence: _Sequence, reason: FinishReason | None) -> GenerationResult:
        now = time.monotonic()
        admitted = now if sequence.admitted is None else sequence.admitted
        first = sequence.first_token
        result = GenerationResult(
            request_id=sequence.request.request_id,
            output_text=" ".join(sequence.words[: sequence.emitted]),
            output_token_ids=tuple(range(sequence.emitted)),
            finish_reason=reason,
            error=EngineError("the fake engine was told to fail this request") if reason is None else None,
            prompt_tokens=len(sequence.request.prompt_token_ids),
            cached_prompt_tokens=sequence.cached_prompt_tokens,
            queue_seconds=admitted - sequence.added,
            ttft_seconds=None if first is None else first - admitted,
            decode_seconds=0.0 if first is None else now - first,
            total_seconds=now - admitted,
            draft_tokens=sequence.draft_tokens,
            accepted_tokens=sequence.draft_tokens,
            target_steps=sequence.steps,
            dropped_prompt_tokens=sequence.request.dropped_prompt_tokens,
            is_valid=False if getattr(sequence.request, "has_constraint", False) else None,
            choice=sequence.request.choice,
            adapter=sequence.request.adapter,
        )
        is_whole = reason not in (None, FinishReason.ABORTED)
        return _with_numbers(result, sequence) if is_whole else result

    def _count(self, **more: float) -> None:
        self._counters = replace(
            self._counters, **{name: getattr(self._counters, name) + value for name, value in more.items()}
        )


def _with_numbers(result: GenerationResult, sequence: _Sequence) -> GenerationResult:
    """The result with the log probabilities or the scores that its request asks for."""
    asked, params = sequence.request.score_choices, sequence.request.sampling_params
    if asked is not None:
        scores = fake_scores(asked.options)
        best = max(asked.options, key=lambda option: scores[option][asked.by])
        ids = tuple(range(int(scores[best]["tokens"])))
        return replace(result, output_text=best, output_token_ids=ids, scores=scores)
    if params.logprobs is not None:
        made = fake_logprobs(sequence.words[: sequence.emitted], params.logprobs, begins_text=False)
        result = replace(result, logprobs=made)
    if params.prompt_alternatives is not None and sequence.request.choice == 0:
        return replace(result, prompt_logprobs=fake_logprobs(sequence.prompt.split(), params.prompt_alternatives))
    return result


def _text(request: Request) -> str:
    if request.messages is not None:
        return " ".join(message["content"] for message in request.messages)
    return request.prompt or _spelt(request.prompt_token_ids or ())


def _spelt(token_ids: tuple[int, ...]) -> str:
    return " ".join(map(str, token_ids))


def _matches(text: str, prompt: str) -> bool:
    return bool(text) and text in prompt
