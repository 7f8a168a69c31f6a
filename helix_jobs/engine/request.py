"""Request, EncodedRequest, RequestState, FinishReason and GenerationResult: the engine's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from helix_jobs.token_counts import TokenCounts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from helix_jobs.engine.chat_options import ReasoningOptions, ToolUse
    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.matcher import Grammar
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.engine.score_choices import ScoreChoices
    from helix_jobs.errors import RequestError
    from helix_jobs.token_logprobs import TokenLogprobs


class FinishReason(StrEnum):
    """Why an output ended: all count as success but ``aborted``, which is neither success nor failure.

    ``tool_calls``: the model ended an answer that calls functions.
    """

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORTED = "aborted"


class RequestState(StrEnum):
    """State of a request inside the engine. A preempted request waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to be answered. Exactly one of ``prompt``, ``messages``, ``prompt_token_ids`` is given.

    Attributes:
        request_id: Unique among the requests the engine holds.
        prompt: Plain text, encoded with the tokenizer's special tokens.
        messages: Chat messages, rendered with the model's chat template.
        chat_template_kwargs: Further arguments for the chat template, such as Qwen3's ``enable_thinking``.
        prompt_token_ids: The model's token ids, instead of a text.
        continue_final_message: The answer goes on with the last message, the assistant's, instead of answering it.
        tools: The functions that an answer to messages may call.
        reasoning: How the model is to think before it answers messages.
        sampling_params: How to sample.
        seed: Root of this request's random numbers; the same (seed, position) draws the same number in any batch.
        truncate_prompt: What to keep of a prompt that is too long; None fails the request instead.
        score_choices: Options to score instead of making an answer; the sampling parameters then have no meaning.
        constraint: The form that the answer must have; None for any.
        adapter: The adapter that answers; None for none, unless ``model`` names one.
        model: The model that the line names. Only the name of an adapter has a meaning.
        stream: Where the growing answer is read; None for nowhere. The engine only hands it on.
        priority: Higher goes first. Above ``MAX_PRIORITY`` it is urgent, see ``engine/schedule/precedence.py``.
    """

    request_id: str
    sampling_params: SamplingParams
    seed: int
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool = False
    tools: ToolUse | None = None
    reasoning: ReasoningOptions | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    truncate_prompt: TruncatePrompt | None = None
    score_choices: ScoreChoices | None = None
    constraint: Constraint | None = None
    adapter: str | None = None
    model: str | None = None
    stream: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRequest:
    """A tokenised request. ``encode`` makes it from a ``Request`` and checks the tokens once.

    Attributes:
        request_id: Unique among the requests the engine holds.
        prompt_token_ids: One or more tokens of the model's vocabulary.
        sampling_params: The request's own.
        seed: The request's own.
        is_chat: The prompt was messages. The answer is then a turn of its own: it ends with the template's end-of-turn
            token and begins without a space.
        bad_words: Token ids of ``sampling_params.bad_words``, each in the forms in which the tokenizer writes it.
        dropped_prompt_tokens: Tokens that truncation took out of the prompt; None where none was asked for.
        first_scored: The first prompt token whose log probability is kept, where the prompt's are asked for. Nothing
            stands before token 0, so it has none.
        num_counted: How many of its prompt tokens the engine's counters count; None for all of them.
        score_choices: The request's own.
        option_token_ids: The tokens of each of its options, which continue the prompt's.
        grammar: The form that the answer must have, behind the thinking, compiled; None without one.
        grammar_has_thinking: The grammar begins with the first token and says itself how the answer thinks.
        choice: Which of the request's answers this one asks for. The engine makes a request for each from the first.
        continues: The answer goes on with the last message's text.
        reasoning: How the answer thinks before it answers; None if it does not.
        max_reasoning_tokens: Most tokens of thinking; None for any number.
        tools: The functions that the answer may call.
        adapter: The name of the adapter that answers; None for the model itself.
        stream: The request's own.
        priority: The request's own.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams
    seed: int
    is_chat: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    dropped_prompt_tokens: int | None = None
    first_scored: int = 1
    num_counted: int | None = None
    score_choices: ScoreChoices | None = None
    option_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    grammar_has_thinking: bool = False
    choice: int = 0
    continues: bool = False
    reasoning: ReasoningForm | None = None
    max_reasoning_tokens: int | None = None
    tools: ToolUse | None = None
    adapter: str | None = None
    stream: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One answer of a request. ``error`` is set exactly when ``finish_reason`` is None.

    A request for several choices gets the first of them, which carries the others in ``siblings``. If a choice failed
    or was aborted, so was the request: ``error`` or ``finish_reason`` of the first says so.

    Times are in seconds from admission to the running batch, measured with a monotonic clock. Waiting before
    admission is ``queue_seconds``.

    Attributes:
        request_id: The request's own.
        output_text: The decoded answer without thinking and calls, and without stop token or stop string unless the
            request keeps them.
        output_token_ids: The emitted tokens, stop token excluded, unless the request keeps it.
        finish_reason: ``stop``, ``length`` or ``tool_calls`` on success, ``aborted`` after an abort, None on an error.
        error: The error of this request alone.
        prompt_tokens: Length of the encoded prompt, after truncation.
        cached_prompt_tokens: Prompt tokens whose keys and values came from the prefix cache.
        queue_seconds: From ``add_request`` to admission.
        ttft_seconds: From admission to the first emitted token; None if there was none.
        decode_seconds: From the first emitted token to the last.
        total_seconds: From admission to the end.
        draft_tokens: Draft tokens verified.
        accepted_tokens: Draft tokens accepted.
        target_steps: Target model steps that decided tokens for this request, a stop token included.
        is_valid: Whether the output has the form that its constraint asks for; None without a constraint. False where
            ``max_tokens`` has cut it short.
        choice: 0 for the first choice.
        siblings: The other choices, in order.
        dropped_prompt_tokens: The request's own, see ``EncodedRequest``.
        logprobs: Log probabilities of the output's tokens, where asked for. Tokens behind a stop string's beginning
            have none; with ``echo`` a stop token has one.
        prompt_logprobs: Log probabilities of the prompt's tokens, the first one's None.
        scores: Option -> ``sum`` and ``mean`` of its tokens' log probabilities, and the number of ``tokens``; None
            where no options were to be scored.
        reasoning_text: The thinking, without its marks; None if there is none.
        reasoning_tokens: Tokens of the thinking, without its marks; None if the prompt left no room for thinking.
        tool_calls: The calls of functions in OpenAI's form; None if there are none.
        adapter: The name of the adapter that answered; None for the model itself.
        lost_with_server: The user's server was lost while it computed this answer, perhaps over it; it is ``aborted``.
    """

    request_id: str
    output_text: str
    output_token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    error: RequestError | None
    prompt_tokens: int
    cached_prompt_tokens: int
    queue_seconds: float
    ttft_seconds: float | None
    decode_seconds: float
    total_seconds: float
    draft_tokens: int
    accepted_tokens: int
    target_steps: int
    is_valid: bool | None = None
    choice: int = 0
    siblings: tuple[GenerationResult, ...] = ()
    dropped_prompt_tokens: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: TokenLogprobs | None = None
    scores: Mapping[str, Mapping[str, float]] | None = None
    reasoning_text: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | None = None
    adapter: str | None = None
    lost_with_server: bool = False

    @classmethod
    def refused(cls, request_id: str, error: RequestError) -> GenerationResult:
        """The result of a request that never entered the engine."""
        return cls(
            request_id=request_id,
            output_text="",
            output_token_ids=(),
            finish_reason=None,
            error=error,
            prompt_tokens=0,
            cached_prompt_tokens=0,
            queue_seconds=0.0,
            ttft_seconds=None,
            decode_seconds=0.0,
            total_seconds=0.0,
            draft_tokens=0,
            accepted_tokens=0,
            target_steps=0,
        )

    @property
    def choices(self) -> tuple[GenerationResult, ...]:
        """All choices, this first one included."""
        return (self, *self.siblings)

    @property
    def completion_tokens(self) -> int:
        """Number of emitted tokens: none where options are scored, though the best one is the answer."""
        return len(self.output_token_ids) if self.scores is None else 0

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the output tokens' log probabilities; None where they were not asked for."""
        return None if self.logprobs is None else self.logprobs.total(self.completion_tokens)

    @property
    def tokens(self) -> TokenCounts:
        """All token counts of this request."""
        return TokenCounts(
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            completion_tokens=self.completion_tokens,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.tokens.acceptance_rate

    @property
    def mean_acceptance_length(self) -> float | None:
        """Emitted tokens per target step; None when no step emitted."""
        return self.completion_tokens / self.target_steps if self.target_steps else None
