"""ServedText: the tokenizer, the template and the limits of a model that a server computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.grammar.grammars import Grammars
    from helix_jobs.engine.request_encoding import RequestEncoding
    from helix_jobs.engine.text.chat_forms import ChatForms
    from helix_jobs.engine.text.codec import TextCodec
    from helix_jobs.engine.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedText:
    """What Helix knows of the model without its weights.

    Attributes:
        codec: Encodes prompts and decodes outputs.
        encoding: Encodes requests.
        grammars: Compiles the forms of answers.
        forms: How answers to messages are read.
        max_model_len: Prompt plus output tokens of a request at most.
        bos_token_id: The token that begins a text; None without one.
    """

    codec: TextCodec
    encoding: RequestEncoding
    grammars: Grammars
    forms: ChatForms
    max_model_len: int
    bos_token_id: int | None = None

    def prompt_text(self, prompt_token_ids: Sequence[int]) -> str:
        """A prompt's text with its special tokens, without the token that begins it: servers put that there themselves.

        Raises:
            EngineError: The tokenizer cannot decode the prompt.
        """
        ids = list(prompt_token_ids)
        try:
            return self.codec.decode_all(ids[1:] if ids[0] == self.bos_token_id else ids)
        except Exception as error:
            raise EngineError(f"the prompt cannot be written as text: {type(error).__name__}") from error

    def close(self) -> None:
        """End the processes that encode and compile."""
        self.codec.close()
        self.grammars.close()


def answer_ids(prompts: PromptEncoder, text: str) -> tuple[int, ...]:
    """The token ids of an answer's text, without special tokens of the tokenizer's own. Thread-safe.

    Raises:
        EngineError: The tokenizer fails on the text.
    """
    try:
        return prompts.encode_words([text])[0] if text else ()
    except RequestError as error:
        raise EngineError("the tokenizer fails on the text of the server's answer; `retry` asks again") from error
