"""ChatForms: how one model's answers to messages are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_jobs.engine.text.added_tokens import added_tokens
from helix_jobs.engine.text.encoded_prompt import Thinking
from helix_jobs.engine.text.reasoning_forms import markers_of, reasoning_form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.chat_options import ToolUse
    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.text.encoded_prompt import FoundTemplate


@dataclass(frozen=True, slots=True)
class ChatForms:
    """The forms of thinking and of calls that a model writes; None for those it does not.

    Attributes:
        reasoning: How it marks thinking.
        calls: The name of its form of calls, see ``call_forms``.
        within_turn: Tokens that end a message inside a turn, and so no answer.
        turn_ends: Tokens that end an answer, beside those that the model's files name.
        has_template: The model has a chat template, and so takes messages.
        shows_tools: The template shows functions to the model.
    """

    reasoning: ReasoningForm | None = None
    calls: str | None = None
    within_turn: frozenset[int] = frozenset()
    turn_ends: frozenset[int] = frozenset()
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

    @property
    def has_channels(self) -> bool:
        """Whether an answer is made of messages, each with a header that names its channel."""
        return self.reasoning is not None and bool(self.reasoning.header_starts)

    def reasoning_after(self, thinking: Thinking, tools: ToolUse | None = None) -> ReasoningForm | None:
        """How an answer thinks; None if it does not.

        Args:
            thinking: What the prompt leaves of the thinking.
            tools: The functions that the answer may call.
        """
        form = self.reasoning
        if form is None or thinking is Thinking.CLOSED:
            return None
        to_text, to_call = form.closings[:1], form.closings[-1:]
        closings = to_text if tools is None else to_call if tools.is_forced else form.closings
        return replace(form, closings=closings, starts_open=thinking is Thinking.OPEN)


def chat_forms(tokenizer: PreTrainedTokenizerBase, found: FoundTemplate | None) -> ChatForms:
    """The forms of a model, from its tokenizer and from what its template does."""
    if found is None:
        return ChatForms()
    tools = found.probe.tools
    forms = ChatForms(calls=tools.call_form, has_template=True, shows_tools=tools.shows_tools)
    if found.markers is None:
        return forms
    vocabulary, markers = tokenizer.get_vocab(), markers_of(found.markers)
    return replace(
        forms,
        reasoning=reasoning_form(
            found.markers,
            found.opening_ids,
            found.closings,
            vocabulary,
            added_tokens(tokenizer),
            header_starts=found.header_starts,
        ),
        within_turn=frozenset(vocabulary[token] for token in markers.within_turn if token in vocabulary),
        turn_ends=frozenset(vocabulary[token] for token in markers.turn_ends if token in vocabulary),
    )
