"""Channels: an output in messages, as gpt-oss writes it. A header names each message's channel and its recipient.

The prompt ends within the first header, or within the text of a message that is continued. Source: OpenAI's description
of the harmony response format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from helix_jobs.engine.text.codec import TextCodec

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS: Final = frozenset({"<|end|>", "<|call|>", "<|return|>"})
_MARKS: Final = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *sorted(_ENDS))
_AT_MARKS: Final = re.compile(f"({'|'.join(map(re.escape, _MARKS))})")
_NAMED_CHANNEL: Final = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT: Final = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS: Final = "functions."


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an output: one mark, or a text without any."""

    text: str
    is_mark: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A message of an output.

    Attributes:
        header: All before its text, marks included; empty for a text that goes on with the prompt's last message.
        text: Its text.
    """

    header: str
    text: str

    @property
    def function(self) -> str | None:
        """The function that it calls; None for a message to the user, or to nobody."""
        recipient = self._recipient
        return None if recipient is None else recipient.removeprefix(_FUNCTIONS)

    @property
    def is_thought(self) -> bool:
        """Whether it is the model's thinking."""
        channel = _NAMED_CHANNEL.search(self.header)
        return channel is not None and channel[1] == "analysis" and self._recipient is None

    @property
    def shown(self) -> str:
        """What the user sees of it: its text, and the header too where that asks for something."""
        return self.text if self._recipient is None else self.header.removeprefix(f"{_START}assistant") + self.text

    @property
    def _recipient(self) -> str | None:
        found = _RECIPIENT.search(self.header)
        return None if found is None else found[1]


def messages_of(parts: Iterable[Part], open_header: str | None = None) -> list[Message]:
    """The messages of an output. A header that is cut makes no message, and a text without any header makes one.

    Args:
        parts: The output, from its first token on.
        open_header: The header of the prompt's last message, whose text the output goes on with; empty for a text to
            the user. None where the prompt ends within a header.
    """
    found: list[Message] = []
    header, text, is_header, has_marks = open_header or "", list[str](), open_header is None, False
    for part in parts:
        mark = part.text if part.is_mark else ""
        has_marks = has_marks or bool(mark)
        if mark == _MESSAGE and is_header:
            header, is_header = header + mark, False
        elif mark == _START or mark in _ENDS:
            if not is_header:
                found.append(Message(header, "".join(text)))
            # Behind the end of a message a header begins, with its mark or without.
            header, text, is_header = mark if mark == _START else "", [], True
        elif is_header:
            header += part.text
        else:
            text.append(part.text)
    if not is_header:
        found.append(Message(header, "".join(text)))
    elif not has_marks and header:
        found.append(Message("", header))
    return found


def split_at_marks(text: str) -> Iterator[Part]:
    """The parts of an output that is given as a text, marks spelt out."""
    for number, part in enumerate(_AT_MARKS.split(text)):
        if part:
            yield Part(part, is_mark=number % 2 == 1)


def parts_of(token_ids: Sequence[int], codec: TextCodec) -> Iterator[Part]:
    """The parts of an output. Only a token of its own is a mark: a model that spells one out writes about it."""
    marks = {codec.added_tokens[mark]: mark for mark in _MARKS if mark in codec.added_tokens}
    begin = 0
    for index, token_id in enumerate(token_ids):
        if token_id in marks:
            if index > begin:
                yield Part(codec.decode(token_ids[begin:index]))
            yield Part(marks[token_id], is_mark=True)
            begin = index + 1
    if begin < len(token_ids):
        yield Part(codec.decode(token_ids[begin:]))
