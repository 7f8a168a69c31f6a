"""RequestEncoding: a request becomes tokens, within the model's vocabulary and context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.adapter_choice import chosen_adapter
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.text.call_grammar import call_constraint
from helix_jobs.engine.text.encoded_prompt import Thinking
from helix_jobs.errors import InvalidRequestError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.grammar.grammars import Grammars
    from helix_jobs.engine.request import Request
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.engine.text.chat_forms import ChatForms
    from helix_jobs.engine.text.codec import TextCodec


class RequestEncoding:
    """Encodes requests for one model. Thread-safe.

    Args:
        codec: Encodes prompts and words.
        max_model_len: Prompt plus output tokens of a request at most.
        eos_token_ids: Tokens that end every output, unless the request ignores them.
        turn_end_ids: Tokens that also end the answer to messages.
        grammars: Compiles constraints.
        chat_forms: How the model's answers to messages are read.
        adapters: Names of the adapters that requests may choose.
    """

    def __init__(
        self,
        codec: TextCodec,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        turn_end_ids: frozenset[int],
        *,
        grammars: Grammars,
        chat_forms: ChatForms,
        adapters: Collection[str] = (),
    ) -> None:
        self._codec = codec
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._turn_end_ids = turn_end_ids
        self._grammars = grammars
        self._chat_forms = chat_forms
        self._adapters = adapters

    def encode(self, request: Request) -> EncodedRequest:
        """Tokenise a request's prompt, its options and its bad words, and compile its constraint.

        Raises:
            InvalidRequestError: There is no such adapter, the prompt or the messages cannot be encoded for this model,
                a sampling field does not fit it, ``max_tokens`` leaves no room for a truncated prompt, or the
                constraint cannot be kept.
            PromptTooLongError: No room is left in the context for one new token.
        """
        params, truncation, is_chat = request.sampling_params, request.truncate_prompt, request.messages is not None
        adapter = chosen_adapter(request, self._adapters)
        prompt = self._codec.encode(request)
        ids = whole = prompt.token_ids
        options = self._codec.encode_options(request)
        if truncation is not None:
            ids = self._codec.truncated(whole, truncation, truncation.tokens or self._room(params, options))
        for all_ids in (ids, *(ids + option for option in options)):
            if len(all_ids) >= self._max_model_len:
                raise self.too_long(all_ids)
        bad_words = self._codec.word_token_ids(params.bad_words) if params.bad_words else ()
        if bad_words and not {(end,) for end in self.stop_ids(params, is_chat=is_chat)}.isdisjoint(bad_words):
            raise InvalidRequestError("bad_words: one is a token that ends the answer; leave it out, or use min_tokens")
        # Compiled here, and not in a step: a constraint takes as long as its author wants, within limits.
        forced_call = self._forced_call(request, prompt.thinking)
        constraint = forced_call or request.constraint
        grammar = None if constraint is None else self._grammars.compile(constraint)
        return EncodedRequest(
            request_id=request.request_id,
            prompt_token_ids=ids,
            sampling_params=params,
            seed=request.seed,
            is_chat=is_chat,
            bad_words=bad_words,
            dropped_prompt_tokens=None if truncation is None else len(whole) - len(ids),
            score_choices=request.score_choices,
            option_token_ids=options,
            grammar=grammar,
            grammar_has_thinking=forced_call is not None and self._chat_forms.has_channels,
            continues=request.continue_final_message,
            reasoning=self._chat_forms.reasoning_after(prompt.thinking, request.tools),
            max_reasoning_tokens=None if request.reasoning is None else request.reasoning.max_tokens,
            tools=request.tools,
            adapter=adapter,
            stream=request.stream,
            priority=request.priority,
        )

    def _forced_call(self, request: Request, thinking: Thinking) -> Constraint | None:
        """What an answer must be that has to call a function.

        Raises:
            InvalidRequestError: The call cannot be enforced.
        """
        forms, tools = self._chat_forms, request.tools
        if tools is None or not tools.is_forced:
            return None
        assert forms.calls is not None, "the prompt is refused where the form of calls is unknown"
        if forms.has_channels and thinking is Thinking.CLOSED:
            raise InvalidRequestError(
                "tool_choice: this model writes a call in a message of its own, and the prompt has begun one for the "
                "user; give auto or none, or end the messages with the user's"
            )
        return call_constraint(tools, forms.calls, self._codec.added_tokens, in_thought=thinking is Thinking.OPEN)

    def stop_ids(self, params: SamplingParams, *, is_chat: bool) -> frozenset[int]:
        """Tokens that end an output.

        Raises:
            InvalidRequestError: A stop text names a special token among others.
        """
        ids = frozenset(params.stop_token_ids) | self._codec.stop_token_ids(params.stop)
        if params.ignore_eos:
            return ids
        return ids | self._eos_token_ids | (self._turn_end_ids if is_chat else frozenset())

    def too_long(self, prompt_ids: Sequence[int]) -> PromptTooLongError:
        """The error of a prompt that leaves no room for one new token."""
        return PromptTooLongError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {self._max_model_len}, "
            "one new token included; shorten the prompt, or say with truncate_prompt what to keep of it"
        )

    def _room(self, params: SamplingParams, options: Sequence[Sequence[int]]) -> int:
        """How many tokens of a truncated prompt the context holds beside the answer or the longest option."""
        if options:
            longest = max(map(len, options))
            room = self._max_model_len - 1 - longest
            taken, lower = f"an option of choices has {longest} tokens", "shorten it"
        else:
            room = self._max_model_len - max(1, params.max_tokens)
            taken, lower = f"max_tokens is {params.max_tokens}", "lower max_tokens"
        if room < 1:
            raise InvalidRequestError(
                f"truncate_prompt_tokens: {taken} and the context holds {self._max_model_len}, which leaves no room "
                f"for a prompt; {lower}, or say how many tokens to keep"
            )
        return room
