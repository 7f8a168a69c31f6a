"""The forms in which models mark their thinking, and the one that a model has, by its template and vocabulary.

Sources: the chat templates and tokenizers of the models named below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.reasoning import ReasoningForm
from helix_jobs.engine.text.added_tokens import split_at_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Markers:
    """The texts of a form; see ``ReasoningForm``.

    Attributes:
        name: The form's name.
        opening: Begins the thinking.
        end: Ends it; the answer follows.
        sign: What a template of such a model writes; the end unless other templates write that, too.
        closing: Closes the thinking at any place, and a text follows; the end unless the form needs more.
        call_closing: Closes the thinking, and a call follows; empty where a call stands within a text.
        headers: Texts with which the first message's header may begin; none where messages have no headers.
        within_turn: Tokens that end a message, but not the turn: thinking and answer are messages of their own.
        turn_ends: Tokens that end a turn, beside those that the model's files name.
    """

    name: str
    opening: str
    end: str
    sign: str = ""
    closing: str = ""
    call_closing: str = ""
    headers: tuple[str, ...] = ()
    within_turn: tuple[str, ...] = ()
    turn_ends: tuple[str, ...] = ()

    @property
    def closings(self) -> tuple[str, ...]:
        """The texts that close the thinking: where a text follows, and where a call does."""
        return (self.closing or self.end, *filter(None, [self.call_closing]))


FORMS: Final = (
    # gpt-oss (harmony): each message names its channel, and the prompt ends within the first one's header.
    Markers(
        "harmony",
        "<|channel|>analysis<|message|>",
        "<|message|>",
        sign="<|channel|>final<|message|>",
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        call_closing="<|end|><|start|>assistant<|channel|>commentary to=functions",
        headers=("<|channel|>", " to=functions"),
        within_turn=("<|end|>",),
        turn_ends=("<|call|>",),
    ),
    # Gemma 4.
    Markers("channel", "<|channel>thought", "<channel|>"),
    # Command R7B and A.
    Markers("command", "<|START_THINKING|>", "<|END_THINKING|>"),
    # Apertus.
    Markers("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    # Magistral and other models of Mistral.
    Markers("mistral", "[THINK]", "[/THINK]"),
    # Seed-OSS.
    Markers("seed", "<seed:think>", "</seed:think>"),
    # Qwen3, QwQ, DeepSeek-R1 and its distillates, SmolLM3, GLM, Nemotron and most others.
    Markers("think", "<think>", "</think>"),
)
# White space as vocabularies spell it: byte-level ones and SentencePiece's.
_BLANKS: Final = str.maketrans("ĠĊĉč▁", "     ")
_BY_NAME: Final[Mapping[str, Markers]] = {form.name: form for form in FORMS}


def find_markers(template: str, added_tokens: Iterable[str]) -> Markers | None:
    """The markers that a model uses: those that its template writes, or else those that are tokens of its own.

    Args:
        template: The chat template's source.
        added_tokens: Tokens that the tokenizer never splits.
    """
    tokens = frozenset(added_tokens)
    for form in FORMS:
        if (form.sign or form.end) in template:
            return form
    for form in FORMS:
        if all(_is_token_made(text, tokens) for text in (form.opening, form.end)):
            return form
    return None


def markers_of(name: str) -> Markers:
    """The texts of the form called ``name``."""
    return _BY_NAME[name]


def reasoning_form(
    name: str,
    opening_ids: tuple[int, ...],
    closings: tuple[tuple[int, ...], ...],
    vocabulary: Mapping[str, int],
    added_tokens: Iterable[str],
    *,
    header_starts: Iterable[int] = (),
) -> ReasoningForm:
    """The form called ``name`` in the tokens of one model.

    A marker that is an added token is told by that token alone: a model that spells it out writes about it. A marker of
    ordinary tokens is told by its text, however the model splits it.

    Args:
        name: From ``find_markers``.
        opening_ids: The opening's tokens.
        closings: Each closing's tokens.
        vocabulary: Token -> id, in the tokenizer's own spelling.
        added_tokens: Tokens that the tokenizer never splits.
        header_starts: The first token of each text with which a header may begin.
    """
    markers, added = _BY_NAME[name], frozenset(added_tokens)
    pieces: dict[int, str] = {}
    plain: list[str] = []
    for text in (markers.opening, markers.end):
        for part in split_at_tokens(text, added):
            if part in added:
                pieces[vocabulary[part]] = part
            else:
                plain.append(part)
    for token, token_id in vocabulary.items():
        if token_id in pieces:
            continue
        if not token.translate(_BLANKS).strip():
            pieces[token_id] = " "
        elif token not in added and any(_touches(token, part) for part in plain):
            pieces[token_id] = token.translate(_BLANKS)
    last = split_at_tokens(markers.end, added)[-1]
    if last in added:
        enders = {vocabulary[last]}
    else:
        enders = {token_id for token_id, piece in pieces.items() if last[-1] in piece}
    return ReasoningForm(
        name=name,
        opening=markers.opening,
        end=markers.end,
        opening_ids=opening_ids,
        closings=closings,
        pieces=pieces,
        enders=frozenset(enders),
        is_spelt=last not in added,
        header_starts=frozenset(header_starts),
    )


def _is_token_made(text: str, tokens: frozenset[str]) -> bool:
    return any(part in tokens for part in split_at_tokens(text, tokens))


def _touches(token: str, marker: str) -> bool:
    """Whether a token may hold some of the marker's characters, in their place."""
    return (
        token in marker
        or marker in token
        or any(token.endswith(marker[:count]) or token.startswith(marker[-count:]) for count in range(1, len(marker)))
    )
