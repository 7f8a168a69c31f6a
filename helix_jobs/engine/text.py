"""TextCodec: prompts to token ids and token ids to text, with one tokenizer shared by threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.request import Request


class TextCodec:
    """Encodes requests and decodes outputs.

    A lock keeps threads apart: fast tokenizers refuse concurrent use while their settings change.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def encode(self, request: Request) -> tuple[int, ...]:
        """Token ids of a request's prompt.

        Raises:
            InvalidRequestError: There is no single prompt, no chat template, the template refuses the messages, or the
                prompt is empty.
        """
        given = [request.prompt is not None, request.messages is not None, request.prompt_token_ids is not None]
        if sum(given) != 1:
            raise InvalidRequestError("a request needs exactly one of prompt, messages and prompt_token_ids")
        if request.prompt_token_ids is not None:
            ids = request.prompt_token_ids
        elif request.prompt is not None:
            ids = self._tokenize(request.prompt, add_special_tokens=True)
        else:
            assert request.messages is not None, "counted above"
            ids = self._tokenize(self._render(request.messages), add_special_tokens=False)
        if not ids:
            raise InvalidRequestError("the prompt has no tokens; give it some text")
        if any(not 0 <= token_id < self._vocab_size for token_id in ids):
            raise InvalidRequestError(
                f"the prompt has a token id outside the model's vocabulary (0 to {self._vocab_size - 1}); "
                "leave that token out, or use the tokenizer that belongs to the model"
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of output tokens, special tokens left out."""
        with self._lock:
            text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one sequence decodes to one string"
        return text

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        with self._lock:
            encoded: Any = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return tuple(encoded["input_ids"])

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequestError("the model has no chat template; submit a prompt instead of messages")
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
                )
        except TemplateError as error:
            # The template's own sentence names roles and order, never the content.
            raise InvalidRequestError(f"the model's chat template refuses the messages: {error}") from error
        except Exception as error:  # a template is a program: anything may come out of it, quotations included
            raise InvalidRequestError(
                f"the model's chat template fails on the messages ({type(error).__name__}); submit a prompt instead"
            ) from error
        assert isinstance(text, str), "tokenize=False renders text"
        return text


class StopStringWatch:
    """Looks for stop strings in a growing output; they may straddle tokens.

    Each look decodes only a window of the last tokens, long enough for the longest stop string: a token adds at least
    one byte, a character has at most four, and where special tokens add nothing the window grows. A hit is then
    confirmed on the whole text.
    """

    def __init__(self, codec: TextCodec, stop: Sequence[str]) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._longest = max(len(text) for text in self._stop)
        # Four tokens a character at worst, and a character cut at each edge of the window.
        self._window = 4 * self._longest + 8

    def find(self, output_ids: Sequence[int], num_new: int) -> tuple[int, str] | None:
        """Look for the first stop string that the last ``num_new`` tokens complete.

        Returns:
            The number of tokens up to and including the one that completes it, and the text before it; or None.
        """
        window = self._window + num_new
        tail = self._codec.decode(output_ids[-window:])
        while len(tail) < self._longest + num_new and window < len(output_ids):
            window *= 2
            tail = self._codec.decode(output_ids[-window:])
        if not any(text in tail for text in self._stop):
            return None
        for count in range(len(output_ids) - num_new + 1, len(output_ids) + 1):
            text = self._codec.decode(output_ids[:count])
            places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
            if places:
                return count, text[: min(places)]
        return None
