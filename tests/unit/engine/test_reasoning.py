"""Where an output's thinking ends, told by tokens of any cut, and the token that closes it."""

from __future__ import annotations

import random

import pytest

from helix_jobs.engine.reasoning import Phase, Place, place_of, reasoning_end
from helix_jobs.engine.sampling.reasoning_budget import closing_tokens
from helix_jobs.engine.text.reasoning_forms import find_markers, markers_of, reasoning_form
from tests.unit.engine.reasoning_models import FIRST, OPENING, SECOND, THIRD, many_tokens, one_token

BLANK, WORD = 3, 20
# A vocabulary that has <think> in no token of its own, with tokens that hold more than a part of it.
SPELT = ["<", "/", ">", "think", "th", "ink", "</", ">Ċ", ">ĊĊ", ".</", "<think", "a", "b", "Ġ", "Ċ", "Ġ<", "nk>", "x>"]


def spelt(*, starts_open=False):
    vocabulary = {token: number for number, token in enumerate(SPELT)}
    form = reasoning_form("think", (0, 3, 2), ((6, 3, 2),), vocabulary, ())
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
    assert closing_tokens(output, many_tokens(starts_open=True), budget) == ({forced} if forced is not None else set())


def test_nothing_is_forced_before_the_model_opens_its_thinking():
    form = one_token()
    assert not closing_tokens([], form, 0)
    assert not closing_tokens([BLANK], form, 0)
    assert closing_tokens([OPENING], form, 0) == {FIRST}
    assert not closing_tokens([WORD, WORD], form, 0)


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
    form = reasoning_form("think", (0,), ((1,),), vocabulary, ("<think>", "</think>"))
    assert reasoning_end([0, 2, 3, 4, 5, 1, 5], form) == 6
    assert not form.is_spelt


ADDED = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>")
HEADER_WORDS = (
    *("analysis", "fin", "al", "final", "commentary", "assistant", "hm", "yes", "<|", "channel"),
    *("\u0120to", "=functions", ".", "wait", "json"),
)
CHANNEL_IDS = {token: number for number, token in enumerate((*ADDED, *HEADER_WORDS))}
C, M, E, S = range(4)
THOUGHT = [C, CHANNEL_IDS["analysis"], M, CHANNEL_IDS["hm"]]
TO_TEXT = (E, S, CHANNEL_IDS["assistant"], C, CHANNEL_IDS["final"], M)
TO_CALL = (
    *(E, S, CHANNEL_IDS["assistant"], C),
    *(CHANNEL_IDS["commentary"], CHANNEL_IDS["\u0120to"], CHANNEL_IDS["=functions"]),
)
CALL_HEADER = [CHANNEL_IDS["."], CHANNEL_IDS["wait"], 4, CHANNEL_IDS["json"], M]


def channels(*closings):
    opening = (C, CHANNEL_IDS["analysis"], M)
    return reasoning_form("harmony", opening, closings, CHANNEL_IDS, ADDED, header_starts=(C, CHANNEL_IDS["\u0120to"]))


def test_channels_are_told_by_their_tokens_and_the_words_between():
    form = channels(TO_TEXT)
    assert place_of(THOUGHT, form) == Place(Phase.THINKING, 3, 4)
    assert place_of([*THOUGHT, *TO_TEXT, CHANNEL_IDS["yes"]], form) == Place(Phase.ANSWER, 3, 4, 10)
    split = [E, S, CHANNEL_IDS["assistant"], C, CHANNEL_IDS["fin"], CHANNEL_IDS["al"], M]
    assert place_of([*THOUGHT, *split], form) == Place(Phase.ANSWER, 3, 4, 11)
    assert reasoning_end([C, CHANNEL_IDS["final"], M, CHANNEL_IDS["yes"]], form) == 3
    assert markers_of("harmony").within_turn == ("<|end|>",)


def test_another_thought_does_not_end_the_thinking_and_a_call_does():
    form, second = channels(TO_TEXT, TO_CALL), [E, S, CHANNEL_IDS["assistant"], *THOUGHT]
    assert place_of([*THOUGHT, *second], form) == Place(Phase.THINKING, 3, 11)
    called = [*THOUGHT, *second, *TO_CALL, *CALL_HEADER]
    assert place_of(called, form) == Place(Phase.ANSWER, 3, 11, len(called))
    by_role = [*THOUGHT, E, S, CHANNEL_IDS["assistant"], *TO_CALL[5:], CHANNEL_IDS["."], CHANNEL_IDS["wait"], C,
               CHANNEL_IDS["commentary"], M]  # fmt: skip
    assert place_of(by_role, form) == Place(Phase.ANSWER, 3, 4, len(by_role))


@pytest.mark.parametrize(
    "first", [[C, CHANNEL_IDS["commentary"]], [CHANNEL_IDS["\u0120to"], CHANNEL_IDS["=functions"]]]
)
def test_an_output_within_its_first_header_is_undecided(first):
    form = channels(TO_TEXT)
    for length in range(1, len(first) + 1):
        assert place_of(first[:length], form) == Place(Phase.UNDECIDED)
    assert place_of([*first, M], form) == Place(Phase.ANSWER, answer=len(first) + 1)
    endless = [*first, *[CHANNEL_IDS["hm"]] * 200]
    assert place_of(endless, form) == Place(Phase.ANSWER)
    assert place_of([CHANNEL_IDS["yes"]], form) == Place(Phase.ANSWER)


def test_a_budget_leaves_the_choice_between_a_text_and_a_call():
    both, text, call = channels(TO_TEXT, TO_CALL), channels(TO_TEXT), channels(TO_CALL)
    shared = [*THOUGHT]
    for expected in TO_TEXT[:4]:
        assert closing_tokens(shared, both, 1) == {expected}
        shared.append(expected)
    final, commentary = CHANNEL_IDS["final"], CHANNEL_IDS["commentary"]
    assert closing_tokens(shared, both, 1) == {final, commentary}
    assert closing_tokens(shared, text, 1) == {final}
    assert closing_tokens(shared, call, 1) == {commentary}
    assert closing_tokens([*shared, final], both, 1) == {M}
    assert not closing_tokens([*shared, final, M], both, 1)
    assert closing_tokens([*shared, commentary], both, 1) == {TO_CALL[5]}
    for length in range(len(CALL_HEADER) + 1):
        assert not closing_tokens([*THOUGHT, *TO_CALL, *CALL_HEADER[:length]], both, 1), "the header is the model's own"


def test_a_second_thought_counts_for_the_budget_and_its_header_is_not_completed():
    form = channels(TO_TEXT, TO_CALL)
    second = [*THOUGHT, E, S, CHANNEL_IDS["assistant"], C, CHANNEL_IDS["analysis"]]
    assert closing_tokens(second, form, 6) == {E}
    assert not closing_tokens(second, form, 99)


def test_the_place_in_random_messages_is_where_a_reader_of_headers_finds_it():
    dice = random.Random(11)
    words = [token for token in CHANNEL_IDS if token not in ADDED]
    headers = [["<|channel|>", "analysis"], ["<|channel|>", "final"], ["<|channel|>", "commentary"],
               ["<|channel|>", "commentary", "\u0120to", "=functions", ".", "wait", "<|constrain|>", "json"],
               ["\u0120to", "=functions", ".", "wait", "<|channel|>", "commentary"]]  # fmt: skip
    ended = 0
    for _ in range(2000):
        output, expected = [], None
        for number in range(dice.randrange(1, 5)):
            header = dice.choice(headers if number else headers[:1])
            output += (["<|end|>", "<|start|>", "assistant"] if number else []) + [*header, "<|message|>"]
            if expected is None and header != headers[0]:
                expected = len(output)
            output += [dice.choice(words) for _ in range(dice.randrange(4))]
        ids = [CHANNEL_IDS[token] for token in output]
        assert reasoning_end(ids, channels(TO_TEXT, TO_CALL)) == expected, output
        ended += expected is not None
    assert ended > 500
