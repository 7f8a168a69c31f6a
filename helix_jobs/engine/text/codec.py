"""TextCodec: prompts to token ids, and token ids to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.prompt_truncation import MAX_TRUNCATED_TOKENS
from helix_jobs.engine.text.added_tokens import added_tokens
from helix_jobs.engine.text.byte_tokens import ByteTokens
from helix_jobs.engine.text.encoded_prompt import EncodedPrompt
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.errors import InvalidRequestError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.request import Request
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.token_logprobs import TokenText

_REPLACEMENT: Final = "\ufffd"
# Prompt tokens before an output that are searched for one with a text; the same number as in vLLM.
_MAX_CONTEXT_TOKENS: Final = 5
# A tokenizer that makes more of 256 characters does not write text.
_MAX_WORD_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class Context:
    """The end of a prompt, which the output's text continues.

    Attributes:
        token_ids: The prompt's last tokens; empty where they have no text.
        text: Their text.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""


class TextCodec:
    """Encodes requests and decodes outputs.

    Encoding runs in other processes (see ``PromptEncoder``) and is thread-safe. Only the engine thread may decode.

    Args:
        tokenizer: A fast tokenizer.
        vocab_size: Number of token ids the model knows.
        prompts: Encodes prompts; None builds an encoder.
        max_prompt_tokens: Longer prompts are refused; None for no limit.

    Attributes:
        added_tokens: Tokens that the tokenizer never splits -> their ids.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        prompts: PromptEncoder | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._prompts = prompts or PromptEncoder(tokenizer)
        self._max_prompt_tokens = max_prompt_tokens
        self._special_tokens = special_tokens(tokenizer)
        self.added_tokens = added_tokens(tokenizer)
        self._bytes = ByteTokens(tokenizer.backend_tokenizer, frozenset(self._special_tokens.values()))

    def encode(self, request: Request) -> EncodedPrompt:
        """A request's prompt in tokens.

        Raises:
            InvalidRequestError: The request has no prompt or several, the model's template or tokenizer refuses the
                prompt (see ``PromptEncoder``), the prompt is empty, a stop text can never be found, or a sampling field
                names a token that the model does not have.
            PromptTooLongError: The prompt has more than ``max_prompt_tokens`` tokens; or, where it is to be truncated,
                more than ``MAX_TRUNCATED_TOKENS``.
            EngineError: The process that tokenises was ended from outside.
        """
        given = [request.prompt is not None, request.messages is not None, request.prompt_token_ids is not None]
        if sum(given) != 1:
            raise InvalidRequestError("a request needs exactly one of prompt, messages and prompt_token_ids")
        self.stop_token_ids(request.sampling_params.stop)
        self._check_token_ids(request.sampling_params)
        encoded = self._encode(request)
        ids = encoded.token_ids
        if not ids:
            raise InvalidRequestError("the prompt has no tokens; give it some text")
        if any(not 0 <= token_id < self._vocab_size for token_id in ids):
            raise InvalidRequestError(
                f"the prompt has a token id outside the model's vocabulary (0 to {self._vocab_size - 1}); "
                "leave that token out, or use the tokenizer that belongs to the model"
            )
        return encoded

    def _encode(self, request: Request) -> EncodedPrompt:
        most = self._max_prompt_tokens if request.truncate_prompt is None else MAX_TRUNCATED_TOKENS
        try:
            if request.prompt_token_ids is not None:
                return EncodedPrompt(request.prompt_token_ids)
            if request.prompt is not None:
                return EncodedPrompt(self._prompts.encode_prompt(request.prompt, most))
            if request.messages:
                return self._prompts.encode_messages(
                    request.messages,
                    request.chat_template_kwargs or {},
                    most,
                    tools=() if request.tools is None else request.tools.tools,
                    continues=request.continue_final_message,
                    reasoning=request.reasoning,
                )
        except PromptTooLongError:
            if request.truncate_prompt is None:
                raise
            raise PromptTooLongError(
                f"the prompt has more than {MAX_TRUNCATED_TOKENS:,} tokens, the most that is truncated; shorten it"
            ) from None
        raise InvalidRequestError("messages is empty; give at least one message")

    def _check_token_ids(self, params: SamplingParams) -> None:
        biased = [token_id for token_id, _ in params.logit_bias]
        for field, token_ids in (("logit_bias", biased), ("allowed_token_ids", params.allowed_token_ids)):
            strange = next((one for one in token_ids or () if one >= self._vocab_size), None)
            if strange is not None:
                raise InvalidRequestError(
                    f"{field}: the model has no token {strange} (its vocabulary is 0 to {self._vocab_size - 1}); leave "
                    "it out, or use the ids of this model's tokenizer"
                )

    def truncated(self, prompt_ids: Sequence[int], truncation: TruncatePrompt, most: int) -> tuple[int, ...]:
        """The tokens of a prompt that ``truncation`` keeps, ``most`` at most."""
        bos_token_id = self._tokenizer.bos_token_id
        return truncation.kept(prompt_ids, most, bos_token_id if isinstance(bos_token_id, int) else None)

    def word_token_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The forms in which words stand in a text: at its beginning and after a space, as vLLM has them. Thread-safe.

        Where the two forms differ, both are taken. (vLLM leaves the second out if it has another number of tokens.)

        Raises:
            InvalidRequestError: A word has no tokens, or too many, or the tokenizer fails on it.
            EngineError: The process that tokenises was ended from outside.
        """
        bare = [word.lstrip() for word in words]
        ids = self._prompts.encode_words([text for word in bare for text in (word, f" {word}")])
        if any(len(form) > _MAX_WORD_TOKENS for form in ids):
            raise InvalidRequestError(f"bad_words: a word has more than {_MAX_WORD_TOKENS} tokens; shorten it")
        if not all(ids[::2]):
            raise InvalidRequestError("bad_words: a word has no tokens in this model's vocabulary; leave it out")
        return tuple(dict.fromkeys(form for form in ids if form))

    def encode_options(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """Token ids of the options that a request wants scored, each behind its prompt; none if it wants none.

        Raises:
            InvalidRequestError: An option has no tokens, or the tokenizer refuses one.
            EngineError: The process that tokenises was ended from outside.
        """
        if request.score_choices is None:
            return ()
        options = request.score_choices.options
        if request.prompt_token_ids is not None:
            raise InvalidRequestError("choices continue a text, and the prompt is token ids; give it as a text")
        found = self._prompts.encode_options(
            options,
            prompt=request.prompt,
            messages=request.messages or (),
            arguments=request.chat_template_kwargs,
            continues=request.continue_final_message,
            reasoning=request.reasoning,
        )
        for index, ids in enumerate(found):
            if not ids or any(not 0 <= token_id < self._vocab_size for token_id in ids):
                raise InvalidRequestError(f"choices[{index}] has no tokens of this model; give it some text")
        return found

    def stop_token_ids(self, stop: Sequence[str]) -> frozenset[int]:
        """Ids of the stop texts that are special tokens, which never appear in an output's text.

        Raises:
            InvalidRequestError: A stop text holds a special token among other text.
        """
        for text in stop:
            for token, token_id in self._special_tokens.items():
                if token in text and token != text and text not in self._special_tokens:
                    raise InvalidRequestError(
                        f"stop: {text!r} holds the special token {token}, which never stands in an answer's text; give "
                        f"{token} alone, or its id {token_id} in stop_token_ids"
                    )
        return frozenset(self._special_tokens[text] for text in stop if text in self._special_tokens)

    def context(self, prompt_ids: Sequence[int]) -> Context:
        """The end of a prompt, beginning at the start of a character."""
        for count in range(1, min(_MAX_CONTEXT_TOKENS, len(prompt_ids)) + 1):
            token_ids = tuple(prompt_ids[-count:])
            if not self._bytes.continues(token_ids[0]) and (text := self.decode(token_ids)):
                return Context(token_ids, text)
        return Context()

    def decode(self, token_ids: Sequence[int], context: Context | None = None) -> str:
        """Text of tokens, without special tokens and without an incomplete character at the end.

        Args:
            token_ids: The tokens.
            context: The end of the prompt before them. Tokenizers that begin a text with a space (SentencePiece)
                remove the first space when decoding, which is right for a whole text and wrong for its continuation.

        Raises:
            LibraryPanicError: The tokenizer panics over the tokens.
        """
        if context is not None and context.token_ids:
            whole = self.decode([*context.token_ids, *token_ids])
            if whole.startswith(context.text):
                return whole[len(context.text) :]
        kept = self._bytes.without_open(token_ids)
        with panics_as_errors():
            text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one sequence decodes to one string"
        if text.endswith(_REPLACEMENT) and self._bytes.writes_open and self._bytes.num_open(token_ids):
            return text.removesuffix(_REPLACEMENT)
        return text

    def token_text(self, token_id: int) -> TokenText:
        """A token's own bytes."""
        return self._bytes.text(token_id)

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """Text of tokens with the special ones, in which some models write their marks.

        Raises:
            LibraryPanicError: The tokenizer panics over the tokens.
        """
        with panics_as_errors():
            text = self._tokenizer.decode(
                self._bytes.without_open(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        assert isinstance(text, str), "one sequence decodes to one string"
        return text

    def window(self, token_ids: Sequence[int], length: int) -> Sequence[int]:
        """The last ``length`` tokens, or a few more, so as not to begin inside a character."""
        start = max(0, len(token_ids) - length)
        while start and self._bytes.continues(token_ids[start]):
            start -= 1
        return token_ids[start:]

    def close(self) -> None:
        """End the processes that encode."""
        self._prompts.close()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text and id of the tokens marked special, except those that are only whitespace."""
    return {
        str(token.content): int(token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content.strip()
    }
