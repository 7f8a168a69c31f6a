"""Fields that one line cannot hold together: the table of all such pairs.

The readers of the fields find a pair, because many a field asks for nothing with some of its values. What the person is
told about it stands here, and in ``docs/formats.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from helix_jobs.errors import InvalidFieldError


@dataclass(frozen=True, slots=True)
class Combination:
    """A field, or a kind of field, that is refused beside another.

    Attributes:
        field: What is refused.
        beside: What it cannot stand beside.
        reason: Why. ``{beside}`` in it stands for the other field's name.
        remedy: What to do about it.
    """

    field: str
    beside: str
    reason: str
    remedy: str

    def error(self, name: str, beside: str | None = None) -> InvalidFieldError:
        """The error of a line that holds both.

        Args:
            name: The refused field's path in the line.
            beside: The other field's path; None where ``beside`` names it.
        """
        return InvalidFieldError(name, self.reason.replace("{beside}", beside or self.beside), self.remedy)


_BESIDE: Final = "stands beside {beside}"
_ONE: Final = "give one of the two"
_NO_CHOICES: Final = "remove it, or remove choices"
_SAME_SCORES: Final = "has no meaning beside {beside}: every try gives the same scores"

# What is asked.
MESSAGES_AND_PROMPT: Final = Combination("messages", "prompt", _BESIDE, _ONE)
CONVERSATIONS_AND_QUESTION: Final = Combination("conversations", "a prompt or messages", _BESIDE, "give one of them")
CHAT_AND_PROMPT: Final = Combination(
    "a field of chats", "prompt", _BESIDE, "remove it, or give messages: a prompt goes through no chat template"
)
FIELD_AND_BODY: Final = Combination("a field of the request", "body", _BESIDE, "move it into body")
TWO_TRUNCATIONS: Final = Combination("truncate_prompt", "truncate_prompt_tokens", _BESIDE, "give one of them")

# Choices.
SAMPLING_AND_CHOICES: Final = Combination(
    "a sampling field", "choices", "has no meaning beside {beside}: they are scored, and no text is made", _NO_CHOICES
)
ANSWER_AND_CHOICES: Final = Combination(
    "a form of the answer, tools or max_reasoning_tokens",
    "choices",
    "has no meaning beside {beside}: they are scored, and no answer is made",
    _NO_CHOICES,
)
ACCEPT_AND_CHOICES: Final = Combination("accept", "choices", _SAME_SCORES, "remove it")
TOKEN_IDS_AND_CHOICES: Final = Combination(
    "a prompt of token ids", "choices", "is token ids beside {beside}", "give a text, which choices continue"
)

# A prompt that is scored alone, and an echo of the prompt.
ACCEPT_AND_SCORED_PROMPT: Final = Combination("accept", "max_tokens 0", _SAME_SCORES, "remove it")
FORM_AND_SCORED_PROMPT: Final = Combination(
    "a form of the answer",
    "max_tokens 0",
    "has no meaning beside {beside}: the prompt is scored, and no text is made",
    "remove it, or raise max_tokens",
)
ECHO_AND_MESSAGES: Final = Combination("echo", "messages", _BESIDE, "remove it: a chat's answer stands alone")
ECHO_AND_TOKEN_IDS: Final = Combination(
    "echo without logprobs",
    "a prompt of token ids",
    "stands beside token ids, which have no text of their own",
    "give logprobs as well, or a text as the prompt",
)

# A form of the answer.
TWO_FORMS: Final = Combination("a form of the answer", "another one", _BESIDE, _ONE)
FORM_AND_TOOLS: Final = Combination("a form of the answer", "tools", _BESIDE, _ONE)
TOOLS_AND_DEFAULT_FORM: Final = Combination(
    "tools", "a form of the answer for all lines", "stands beside a form of the answer, which no call has", _ONE
)
ENDLESS_AND_FORM: Final = Combination(
    "ignore_eos", "a form of the answer", "stands beside {beside}, which ends where the form does", _ONE
)

COMBINATIONS: Final = (
    MESSAGES_AND_PROMPT,
    CONVERSATIONS_AND_QUESTION,
    CHAT_AND_PROMPT,
    FIELD_AND_BODY,
    TWO_TRUNCATIONS,
    SAMPLING_AND_CHOICES,
    ANSWER_AND_CHOICES,
    ACCEPT_AND_CHOICES,
    TOKEN_IDS_AND_CHOICES,
    ACCEPT_AND_SCORED_PROMPT,
    FORM_AND_SCORED_PROMPT,
    ECHO_AND_MESSAGES,
    ECHO_AND_TOKEN_IDS,
    TWO_FORMS,
    FORM_AND_TOOLS,
    TOOLS_AND_DEFAULT_FORM,
    ENDLESS_AND_FORM,
)
