"""ChatForms: how one model's answers to messages are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_jobs.engine.text.added_tokens import added_tokens
from helix_jobs.engine.text.encoded_prompt import Thinking
from helix_jobs.engine.text.reasoning_forms import reasoning_form, within_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.text.encoded_prompt import FoundTemplate


@dataclass(frozen=True, slots=True)
class ChatForms:
    """The forms of thinking and of calls that a model writes; None for those it does not.

    Attributes:
        reasoning: How it marks thinking.
        calls: The name of its form of calls, see ``call_forms``.
        within_turn: Tokens that end a message inside a turn, and so no answer.
        has_template: The model has a chat template, and so takes messages.
        shows_tools: The template shows functions to the model.
    """

    reasoning: ReasoningForm | None = None
    calls: str | None = None
    within_turn: frozenset[int] = frozenset()
    has_template: bool = False
    shows_tools: bool = False

    @property
    def in_words(self) -> str:
        """What a request to this model may ask of a chat, for the person who starts the worker."""
        if not self.has_template:
            return "prompts only (the model has no chat template)"
        # A template that shows functions and writes no call in a known form serves no request with tools.
        tools = "tools" if self.shows_tools and self.calls is not None else "no tools"
        return f"messages, {'no thinking' if self.reasoning is None else 'thinking'}, {tools}"

    def reasoning_after(self, thinking: Thinking) -> ReasoningForm | None:
        """How an answer thinks whose prompt leaves the thinking so; None if it does not think."""
        if self.reasoning is None or thinking is Thinking.CLOSED:
            return None
        return replace(self.reasoning, starts_open=thinking is Thinking.OPEN)


def chat_forms(tokenizer: PreTrainedTokenizerBase, found: FoundTemplate | None) -> ChatForms:
    """The forms of a model, from its tokenizer and from what its template does."""
    if found is None:
        return ChatForms()
    tools = found.probe.tools
    forms = ChatForms(calls=tools.call_form, has_template=True, shows_tools=tools.shows_tools)
    if found.markers is None:
        return forms
    vocabulary = tokenizer.get_vocab()
    return replace(
        forms,
        reasoning=reasoning_form(
            found.markers, found.opening_ids, found.closing_ids, vocabulary, added_tokens(tokenizer)
        ),
        within_turn=frozenset(vocabulary[token] for token in within_turn(found.markers) if token in vocabulary),
    )
