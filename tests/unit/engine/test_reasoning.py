"""Where an output's thinking ends, told by tokens of any cut, and the token that closes it."""

from __future__ import annotations

import random

import pytest

from helix_jobs.engine.reasoning import Phase, Place, place_of, reasoning_end
from helix_jobs.engine.sampling.reasoning_budget import forced_token
from helix_jobs.engine.text.reasoning_forms import find_markers, reasoning_form, within_turn
from tests.unit.engine.reasoning_models import FIRST, OPENING, SECOND, THIRD, many_tokens, one_token

BLANK, WORD = 3, 20
# A vocabulary that has <think> in no token of its own, with tokens that hold more than a part of it.
SPELT = ["<", "/", ">", "think", "th", "ink", "</", ">Ċ", ">ĊĊ", ".</", "<think", "a", "b", "Ġ", "Ċ", "Ġ<", "nk>", "x>"]


def spelt(*, starts_open=False):
    vocabulary = {token: number for number, token in enumerate(SPELT)}
    form = reasoning_form("think", (0, 3, 2), (6, 3, 2), vocabulary, ())
    return form if not starts_open else type(form)(**{**vars_of(form), "starts_open": True})


def vars_of(form):
    return {name: getattr(form, name) for name in form.__slots__}


def ids(*tokens):
    return [SPELT.index(token) for token in tokens]


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ([], Place(Phase.UNDECIDED)),
        ([BLANK, BLANK], Place(Phase.UNDECIDED)),
        ([OPENING], Place(Phase.THINKING, 1, 1)),
        ([BLANK, OPENING, WORD], Place(Phase.THINKING, 2, 3)),
        ([OPENING, WORD, FIRST], Place(Phase.ANSWER, 1, 2, 3)),
        ([OPENING, FIRST, WORD, FIRST], Place(Phase.ANSWER, 1, 1, 2)),
        ([WORD, OPENING, FIRST], Place(Phase.ANSWER)),
        ([FIRST, WORD], Place(Phase.ANSWER, 0, 0, 1)),
    ],
)
def test_a_model_that_may_think_does_so_from_the_beginning_or_not_at_all(output, place):
    assert place_of(output, one_token()) == place
    assert place_of(tuple(output), one_token()) == place


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ([], Place(Phase.THINKING)),
        ([WORD, WORD], Place(Phase.THINKING, 0, 2)),
        ([WORD, FIRST], Place(Phase.ANSWER, 0, 1, 2)),
        ([FIRST], Place(Phase.ANSWER, 0, 0, 1)),
    ],
)
def test_a_prompt_that_opens_the_thinking_begins_within_it(output, place):
    assert place_of(output, one_token(starts_open=True)) == place


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ([WORD, FIRST, SECOND, THIRD, WORD], Place(Phase.ANSWER, 0, 1, 4)),
        ([WORD, SECOND, THIRD], Place(Phase.ANSWER, 0, 1, 3)),
        ([WORD, FIRST, FIRST, SECOND, THIRD], Place(Phase.ANSWER, 0, 2, 5)),
        ([WORD, FIRST, SECOND, WORD, THIRD], Place(Phase.THINKING, 0, 5)),
        ([THIRD, SECOND, SECOND], Place(Phase.THINKING, 0, 3)),
    ],
)
def test_a_marker_of_several_tokens_counts_when_it_is_whole(output, place):
    assert place_of(output, many_tokens(starts_open=True)) == place


@pytest.mark.parametrize(
    ("output", "end"),
    [
        (ids("</", "think", ">", "a"), 3),
        (ids("<", "/", "th", "ink", ">Ċ", "a"), 5),
        (ids("a", ".</", "think", ">ĊĊ"), 4),
        (ids("a", "</", "th", "ink", "x>"), None),
        (ids("a", "</", "th", "ink"), None),
        (ids("<think", ">", "a"), None),
        (ids("</", "th", "nk>"), None),
    ],
)
def test_an_end_of_ordinary_tokens_is_told_however_it_is_split(output, end):
    assert reasoning_end(output, spelt(starts_open=True)) == end


@pytest.mark.parametrize(
    ("output", "phase"),
    [
        (ids("<"), Phase.UNDECIDED),
        (ids("Ċ", "<think"), Phase.UNDECIDED),
        (ids("Ġ<", "think", ">Ċ"), Phase.THINKING),
        (ids("<think", ">"), Phase.THINKING),
        (ids("<", "a"), Phase.ANSWER),
        (ids("<", "/"), Phase.UNDECIDED),
        (ids("a"), Phase.ANSWER),
    ],
)
def test_an_opening_of_ordinary_tokens_is_told_however_it_is_split(output, phase):
    assert place_of(output, spelt()).phase is phase


def test_the_end_of_any_text_in_any_cut_is_where_its_characters_say():
    """The tokens of random texts, compared with a search in the text itself."""
    dice, form = random.Random(5), spelt(starts_open=True)
    found = 0
    for _ in range(3000):
        tokens = [dice.choice(SPELT) for _ in range(dice.randrange(14))]
        if dice.random() < 0.5:
            at = dice.randrange(len(tokens) + 1)
            tokens[at:at] = dice.choice(
                (["</", "think", ">"], ["<", "/", "th", "ink", ">Ċ"], [".</", "th", "ink", ">ĊĊ"])
            )
        text, expected = "", None
        for number, token in enumerate(tokens, 1):
            text += token
            if expected is None and "</think>" in text:
                expected = number
        assert reasoning_end(ids(*tokens), form) == expected, tokens
        found += expected is not None
    assert found > 1000


@pytest.mark.parametrize(
    ("output", "budget", "forced"),
    [
        ([], 0, FIRST),
        ([WORD], 2, None),
        ([WORD, WORD], 2, FIRST),
        ([WORD, WORD, FIRST], 2, SECOND),
        ([WORD, WORD, FIRST, SECOND], 2, THIRD),
        ([WORD, WORD, FIRST, SECOND, THIRD], 2, None),
        ([WORD, FIRST], 2, SECOND),
        ([WORD, WORD, WORD, WORD], 2, FIRST),
        ([SECOND, THIRD, WORD, WORD, WORD], 1, None),
    ],
)
def test_the_closing_is_forced_token_by_token(output, budget, forced):
    assert forced_token(output, many_tokens(starts_open=True), budget) == forced


def test_nothing_is_forced_before_the_model_opens_its_thinking():
    form = one_token()
    assert forced_token([], form, 0) is None
    assert forced_token([BLANK], form, 0) is None
    assert forced_token([OPENING], form, 0) == FIRST
    assert forced_token([WORD, WORD], form, 0) is None


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ '<think>\n\n</think>' }}", (), "think"),
        ("nothing", ("<think>", "</think>"), "think"),
        ("nothing", ("[THINK]", "[/THINK]"), "mistral"),
        ("nothing", ("<|channel|>", "<|message|>", "<|start|>"), "harmony"),
        ("{{ '<|channel>thought\n<channel|>' }}", ("<|channel>", "<channel|>"), "channel"),
        ("nothing", ("<think>",), None),
        ("nothing", (), None),
    ],
)
def test_a_models_form_is_that_of_its_template_or_of_its_tokens(template, tokens, name):
    found = find_markers(template, tokens)
    assert (found.name if found else None) == name


def test_a_marker_that_is_a_token_is_told_by_that_token_alone():
    vocabulary = {"<think>": 0, "</think>": 1, "</": 2, "think": 3, ">": 4, "a": 5}
    form = reasoning_form("think", (0,), (1,), vocabulary, ("<think>", "</think>"))
    assert reasoning_end([0, 2, 3, 4, 5, 1, 5], form) == 6
    assert not form.is_spelt


def test_channels_are_told_by_their_tokens_and_the_words_between():
    added = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    words = ("analysis", "fin", "al", "final", "assistant", "hm", "yes", "<|", "channel")
    vocabulary = {token: number for number, token in enumerate((*added, *words))}
    channel, message, end, start = range(4)
    closing = (end, start, vocabulary["assistant"], channel, vocabulary["final"], message)
    form = reasoning_form("harmony", (channel, vocabulary["analysis"], message), closing, vocabulary, added)
    thought = [channel, vocabulary["analysis"], message, vocabulary["hm"]]
    assert place_of(thought, form) == Place(Phase.THINKING, 3, 4)
    assert place_of([*thought, *closing, vocabulary["yes"]], form) == Place(Phase.ANSWER, 3, 4, 10)
    split = [channel, vocabulary["fin"], vocabulary["al"], message]
    assert reasoning_end([*thought, *split], form) == 8
    assert reasoning_end([channel, vocabulary["final"], message, vocabulary["yes"]], form) == 3
    assert forced_token(thought, form, 1) == end
    assert forced_token([*thought, end], form, 1) == start
    assert within_turn("harmony") == ("<|end|>",)
