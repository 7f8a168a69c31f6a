"""ReasoningOptions and ToolUse: what a request asks of a chat beside its messages. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# A function's name, as OpenAI has it.
MAX_NAME_CHARS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningOptions:
    """How a model is to think.

    Attributes:
        effort: A grade such as ``low``; ``none`` for no thinking. None leaves it to the model.
        enabled: Whether the model is to think; None leaves it to the model.
        max_tokens: Most tokens of thinking; None for any number.
    """

    effort: str | None = None
    enabled: bool | None = None
    max_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of what is given."""
        values = {"effort": self.effort, "enabled": self.enabled, "max_tokens": self.max_tokens}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The functions that an answer may call.

    Attributes:
        tools: The functions in OpenAI's form, ``{"type": "function", "function": {...}}``, as templates take them.
        is_required: The answer must be one call or more.
        only: The one function that the answer must call; None if the model chooses.
        is_parallel: An answer may hold several calls.
    """

    tools: tuple[Mapping[str, Any], ...]
    is_required: bool = False
    only: str | None = None
    is_parallel: bool = True

    @property
    def is_forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.is_required or self.only is not None

    @property
    def parameters(self) -> dict[str, Any]:
        """Function's name -> the JSON schema of its parameters."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.tools}
