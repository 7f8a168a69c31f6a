"""ReasoningForm: how a model marks its thinking, and where in an output the thinking ends. Pure functions, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Stands for a token that is part of no marker.
_OTHER: Final = "\0"
# Longest header that is waited for, in tokens. A function's name in it has up to 64 characters.
MAX_HEADER: Final = 96


class Phase(StrEnum):
    """What a model writes next.

    ``undecided``: the output is empty or the beginning of a marker, so that the model may still begin to think.
    """

    UNDECIDED = "undecided"
    THINKING = "thinking"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningForm:
    """How a model marks its thinking, in texts and in its own tokens.

    The *opening* begins the thinking; the prompt may already hold it. The *end* is the marker after which the answer
    begins. A *closing* is what closes the thinking at any place: it completes the end, or leads to it.

    Some models write an output in messages, each with a *header* that names its channel. There the opening is a header,
    and the end is what every header ends with: the thinking lasts until a header ends that is no opening.

    Attributes:
        name: The form's name in ``reasoning_forms``.
        opening: The opening's text.
        end: The end's text.
        opening_ids: The opening, as the model's tokenizer splits it.
        closings: The closings, as the model's tokenizer splits them; all begin alike.
        pieces: Token id -> its text, for each token that may be part of a marker. White space is a space.
        enders: Tokens that may complete the end.
        is_spelt: The end is made of ordinary tokens, and told by its text.
        header_starts: Tokens with which the first header may begin; none where messages have no headers.
        starts_open: The prompt has opened the thinking.
    """

    name: str
    opening: str
    end: str
    opening_ids: tuple[int, ...]
    closings: tuple[tuple[int, ...], ...]
    pieces: Mapping[int, str] = field(compare=False, repr=False)
    enders: frozenset[int] = field(compare=False, repr=False)
    is_spelt: bool = False
    header_starts: frozenset[int] = frozenset()
    starts_open: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far an output has come.

    Attributes:
        phase: What comes next.
        start: Index of the first token of the thinking, behind its opening.
        stop: Index behind the last token of the thinking, before its end.
        answer: Index of the answer's first token, behind the end; meaningful in the answer only.
    """

    phase: Phase
    start: int = 0
    stop: int = 0
    answer: int = 0


def place_of(output_ids: Sequence[int], form: ReasoningForm) -> Place:
    """Say whether an output thinks, and where its thinking begins and ends.

    A model whose prompt opens no thinking thinks only if its output begins with the opening; white space may stand
    before it. Time is linear in the output.
    """
    begin = _begin(output_ids, form)
    if begin.phase is not Phase.THINKING:
        return begin
    start = begin.start
    last = _next_end(output_ids, form, start)
    if last is None:
        return Place(Phase.THINKING, start, len(output_ids))
    return Place(Phase.ANSWER, start, _begin_of_end(output_ids, form, start, last), last + 1)


def is_undecided(output_ids: Sequence[int], form: ReasoningForm) -> bool:
    """Whether the model may still begin to think. Only the first tokens are looked at, however long the output is."""
    return _begin(output_ids, form).phase is Phase.UNDECIDED


def reasoning_end(output_ids: Sequence[int], form: ReasoningForm) -> int | None:
    """Index of the answer's first token; None while the model thinks or may still begin to.

    It is 0 for an output that does not think.
    """
    place = place_of(output_ids, form)
    return place.answer if place.phase is Phase.ANSWER else None


def _begin(output_ids: Sequence[int], form: ReasoningForm) -> Place:
    """Where an output's thinking begins; its end is not looked for. An output that does not think has its answer."""
    if form.starts_open:
        return Place(Phase.THINKING)
    if output_ids and output_ids[0] in form.header_starts:
        return _behind_header(output_ids, form)
    text = ""
    for index, token_id in enumerate(output_ids):
        text = (text + form.pieces.get(token_id, _OTHER)).lstrip()
        if text.startswith(form.opening):
            return Place(Phase.THINKING, start=index + 1)
        if text.startswith(form.end):
            return Place(Phase.ANSWER, answer=index + 1)
        if not (form.opening.startswith(text) or form.end.startswith(text)):
            return Place(Phase.ANSWER)
    return Place(Phase.UNDECIDED)


def _behind_header(output_ids: Sequence[int], form: ReasoningForm) -> Place:
    """Where an output begins that begins with a header."""
    for index in range(min(len(output_ids), MAX_HEADER)):
        if output_ids[index] in form.enders:
            if _is_end(output_ids, form, 0, index):
                return Place(Phase.ANSWER, answer=index + 1)
            return Place(Phase.THINKING, start=index + 1)
    return Place(Phase.UNDECIDED if len(output_ids) < MAX_HEADER else Phase.ANSWER)


def _next_end(output_ids: Sequence[int], form: ReasoningForm, start: int) -> int | None:
    """Index of the token that completes the first end at or behind ``start``."""
    if len(form.enders) == 1:  # a single comparison in C for each token: this runs at each position of a long thinking
        (ender,) = form.enders
        found = start
        while True:
            try:
                found = output_ids.index(ender, found)
            except ValueError:
                return None
            if _is_end(output_ids, form, start, found):
                return found
            found += 1
    for index in range(start, len(output_ids)):
        if output_ids[index] in form.enders and _is_end(output_ids, form, start, index):
            return index
    return None


def _is_end(output_ids: Sequence[int], form: ReasoningForm, start: int, last: int) -> bool:
    """Whether token ``last`` completes an end; a header that opens another thought does not."""
    if form.end not in _text_before(output_ids, form, start, last, len(form.end)):
        return False
    if not form.header_starts:
        return True
    return not _text_before(output_ids, form, start, last, len(form.opening)).endswith(form.opening)


def _text_before(output_ids: Sequence[int], form: ReasoningForm, start: int, last: int, length: int) -> str:
    first = max(start, last + 1 - length)  # each token of a marker has at least one of its characters
    return "".join(form.pieces.get(token_id, _OTHER) for token_id in output_ids[first : last + 1])


def _begin_of_end(output_ids: Sequence[int], form: ReasoningForm, start: int, last: int) -> int:
    """Index of the token in which the closing begins, or at least the end, that token ``last`` completes."""
    for closing in form.closings:
        begin = last + 1 - len(closing)
        if begin >= start and tuple(output_ids[begin : last + 1]) == closing:
            return begin
    if form.header_starts:  # what ends a message stands before the next one's header
        first = form.closings[0][0]
        return next((index for index in range(last, start - 1, -1) if output_ids[index] == first), last)
    text = ""
    for index in range(last, start - 1, -1):
        text = form.pieces.get(output_ids[index], _OTHER) + text
        if form.end in text:
            return index
    return start
