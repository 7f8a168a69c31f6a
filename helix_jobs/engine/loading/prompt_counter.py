"""PromptCounter: how many tokens a request's prompt has for a model, without the model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from helix_jobs.engine.loading.bare_tokenizer import open_tokenizer
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from helix_jobs.engine.request import Request


class PromptCounter:
    """Counts as a worker would, by the model's own tokenizer and chat template. A context manager.

    Args:
        name: The model, as for ``open_tokenizer``.
        home: HELIX_HOME.
        on_progress: Receives one line for each thing that is done.

    Attributes:
        max_context: Positions that the model was made for; None if its files do not say.

    Raises:
        ModelError: There is no such model, or its tokenizer cannot be read.
    """

    def __init__(self, name: str, home: Path, on_progress: Callable[[str], None]) -> None:
        bare = open_tokenizer(name, home, on_progress)
        self.max_context = bare.max_context
        self._prompts = PromptEncoder(bare.tokenizer, name=name)
        self._codec = TextCodec(bare.tokenizer, bare.vocab_size, self._prompts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._prompts.close()

    def count(self, request: Request) -> int:
        """Tokens of the prompt, with the chat template applied to messages.

        Raises:
            InvalidRequestError: The model cannot take the request.
        """
        return len(self._codec.encode(request).token_ids)
