"""Outputs held to a grammar: transformers' own, token for token, whatever is drafted and in any company."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import lru_cache

import jsonschema
import pytest
import torch

from helix_jobs.engine import new_sequences
from helix_jobs.engine.chat_options import ToolUse
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError, InvalidRequestError
from tests.unit.engine.grammar_models import (
    CONSTRAINTS,
    END,
    PERSON,
    THINK_END,
    GrammarLogits,
    constrained,
    grammar_engine,
    json_model,
    json_tokenizer,
    reference,
)
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import EOS

MAX_TOKENS = 40


@lru_cache(maxsize=64)
def expected(kind, prompt="Ann is 12", penalty=1.0):
    return reference(json_model(), CONSTRAINTS[kind], prompt, MAX_TOKENS, repetition_penalty=penalty)


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize(
    ("draft", "drafters"), [("none", ()), ("none", ("lookup",)), ("same", ()), ("other", ("lookup",))]
)
def test_greedy_output_is_transformers_own(depth, draft, drafters):
    engine = grammar_engine(draft, depth=depth, drafters=drafters, max_batch_size=4)
    requests = [constrained(kind, one, max_tokens=MAX_TOKENS) for kind, one in CONSTRAINTS.items()]
    results = engine.generate(requests)
    assert [r.output_token_ids for r in results] == [expected(kind) for kind in CONSTRAINTS]
    assert sum(r.draft_tokens for r in results) > 0 if depth else not any(r.draft_tokens for r in results)
    engine.check_integrity()


def test_greedy_output_at_adaptive_depths_is_transformers_own():
    engine = grammar_engine("same", drafters=("lookup",), adaptive=True)
    requests = [constrained(kind, one, max_tokens=MAX_TOKENS) for kind, one in CONSTRAINTS.items()]
    assert [r.output_token_ids for r in engine.generate(requests)] == [expected(kind) for kind in CONSTRAINTS]
    assert engine.counters().depth_reasons.keys() & {"forced", "mixed"}


def test_penalties_come_before_the_mask_as_in_transformers():
    engine = grammar_engine("other")
    requests = [
        constrained(kind, one, max_tokens=MAX_TOKENS, repetition_penalty=1.4) for kind, one in CONSTRAINTS.items()
    ]
    wanted = [expected(kind, penalty=1.4) for kind in CONSTRAINTS]
    assert [r.output_token_ids for r in engine.generate(requests)] == wanted
    assert wanted != [expected(kind) for kind in CONSTRAINTS], "the penalty changes nothing here"


@pytest.mark.thorough
def test_the_answer_is_the_same_in_any_company_and_after_preemption():
    small = grammar_engine("same", num_blocks=30, max_batch_size=6)
    requests = [
        constrained(f"{kind} {i}", one, f"number {i}", max_tokens=MAX_TOKENS)
        for i in range(3)
        for kind, one in [*CONSTRAINTS.items(), ("plain", None)]
    ]
    together = {r.request_id: r for r in small.generate(requests)}
    assert small.counters().preemptions > 0
    alone = grammar_engine("none", depth=0, max_batch_size=1)
    for result in alone.generate(requests):
        assert together[result.request_id].output_token_ids == result.output_token_ids
        assert together[result.request_id].is_valid == result.is_valid


def test_what_a_grammar_forces_is_drafted_without_any_other_drafter_and_accepted():
    engine = grammar_engine("none")
    assert engine.info.draft_model is None, "the worker's own drafters are named, and there are none"
    (result,) = engine.generate([constrained("one", CONSTRAINTS["person"], max_tokens=80)])
    assert result.draft_tokens == result.accepted_tokens > 5
    assert result.target_steps < result.completion_tokens
    counters = engine.counters()
    assert counters.forced_tokens == counters.accepted_forced_tokens == result.draft_tokens
    (plain,) = engine.generate([constrained("plain", None, max_tokens=20)])
    assert plain.draft_tokens == 0


def test_nothing_drafts_with_speculation_off():
    engine = grammar_engine("none", depth=0)
    (result,) = engine.generate([constrained("one", CONSTRAINTS["person"], max_tokens=80)])
    assert (result.draft_tokens, result.is_valid) == (0, True)


def test_a_whole_answer_is_valid_and_ends_with_stop():
    (result,) = grammar_engine().generate([constrained("one", CONSTRAINTS["person"], max_tokens=100)])
    jsonschema.validate(json.loads(result.output_text), PERSON)
    assert ": " not in result.output_text
    assert (result.finish_reason, result.is_valid) == (FinishReason.STOP, True)


def test_an_answer_cut_short_is_not_valid():
    (result,) = grammar_engine().generate([constrained("one", CONSTRAINTS["person"], max_tokens=5)])
    assert (result.finish_reason, result.is_valid) == (FinishReason.LENGTH, False)


def test_an_answer_complete_with_its_last_token_ends_with_stop():
    length = len(expected("choice"))
    (result,) = grammar_engine().generate([constrained("one", CONSTRAINTS["choice"], max_tokens=length)])
    assert (result.output_token_ids, result.finish_reason) == (expected("choice"), FinishReason.STOP)


def test_an_answer_cut_by_a_stop_string_is_judged_by_its_text():
    requests = [constrained(stop, CONSTRAINTS["person"], max_tokens=80, stop=(stop,)) for stop in ("age", "Zzz")]
    cut, whole = grammar_engine().generate(requests)
    assert (cut.output_text.count("age"), cut.finish_reason, cut.is_valid) == (0, FinishReason.STOP, False)
    assert whole.is_valid
    regex = Constraint("regex", "a+(x[a-z]*)?")
    (result,) = grammar_engine().generate([constrained("one", regex, max_tokens=30, stop=("x",))])
    assert result.is_valid is (set(result.output_text) == {"a"})


def test_without_a_constraint_nothing_is_judged():
    (result,) = grammar_engine().generate([constrained("one", None, max_tokens=5)])
    assert result.is_valid is None


@pytest.mark.parametrize("draft", ["none", "same"])
def test_end_tokens_stand_only_where_the_grammar_accepts(draft):
    """Several end tokens, one of them the request's own; with none to stop at, the answer ends where it is complete."""
    letters = Constraint("regex", "[a-c]{4}")
    engine = grammar_engine(draft, ends=(EOS, END))
    requests = [
        constrained("both", letters, ends=(EOS, END)),
        constrained("ignored", letters, ends=(EOS, END), ignore_eos=True),
        constrained("own", letters, ends=(EOS, END), ignore_eos=True, stop_token_ids=(END,)),
    ]
    for result in engine.generate(requests):
        assert len(result.output_text) == 4
        assert (result.finish_reason, result.is_valid) == (FinishReason.STOP, True)


def test_a_stop_token_that_is_a_letter_ends_the_answer_only_where_it_may_end():
    letter = json_tokenizer().encode("b")[0]
    request = constrained("one", Constraint("regex", "[ab]{4}|[ab]{6}"), stop_token_ids=(letter,), ignore_eos=True)
    (result,) = grammar_engine("same").generate([request])
    assert result.output_text in ("aaaa", "aaaaaa")
    assert result.is_valid


def test_padded_rows_and_special_tokens_are_never_chosen():
    class Favours:
        """Another processor, that likes nothing better than these."""

        keeps_argmax = False

        def shape(self, logits, _output_ids):
            logits[len(json_tokenizer()) :] += 1000
            logits[:3] += 900

    engine = grammar_engine("same")
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        anything = Constraint("regex", "(.|\n){12}")
        engine.add_request(constrained(name, anything, max_tokens=20, temperature=temperature))
        sequence = next(one for one in opened(engine).scheduler.waiting if one.request_id == name)
        sequence.processors = (Favours(), *sequence.processors)
    results = []
    while engine.has_unfinished():
        results += engine.step()
    for result in results:
        assert all(2 < token < len(json_tokenizer()) for token in result.output_token_ids)
        assert result.is_valid


def test_a_position_without_tokens_ends_the_request_alone():
    class Bans:
        """Another processor, that leaves only letters."""

        keeps_argmax = False

        def shape(self, logits, _output_ids):
            digits = [json_tokenizer().encode(str(digit))[0] for digit in range(10)]
            logits[digits] = float("-inf")

    digits = Constraint("regex", "(ab)?[0-9]")
    engine = grammar_engine("same")
    for name, regex in (("bad", digits), ("good", CONSTRAINTS["choice"]), ("open", Constraint("regex", "(ab)+[0-9]*"))):
        engine.add_request(constrained(name, regex, max_tokens=MAX_TOKENS, ignore_eos=True))
        sequence = next(one for one in opened(engine).scheduler.waiting if one.request_id == name)
        sequence.processors = (Bans(),)
    results = {}
    while engine.has_unfinished():
        results.update((result.request_id, result) for result in engine.step())
    assert isinstance(results["bad"].error, InvalidRequestError)
    assert results["bad"].is_valid is False
    assert results["good"].output_token_ids == expected("choice")
    assert results["open"].is_valid
    engine.check_integrity()


def test_a_grammar_that_exceeds_its_limits_fails_its_request_alone(monkeypatch):
    engine = grammar_engine("same")
    bad, good = Constraint("regex", "[a-z]+"), CONSTRAINTS["person"]
    requests = [
        constrained("bad", bad, max_tokens=20, temperature=1.0),
        constrained("good", good, max_tokens=MAX_TOKENS),
    ]
    matcher = type(requests[0].grammar.matcher())
    fill = matcher.fill_mask

    def exceed(self, mask):
        if self._grammar is requests[0].grammar:
            raise GrammarError("too much")
        fill(self, mask)

    monkeypatch.setattr(matcher, "fill_mask", exceed)
    failed, other = engine.generate(requests)
    assert "too much" in str(failed.error)
    assert other.output_token_ids == expected("person")


@pytest.mark.parametrize(("draft", "depth"), [("none", 0), ("same", 4), ("other", 4)])
def test_the_grammar_begins_after_the_thinking_also_inside_a_draft(draft, depth, monkeypatch):
    """The model is made to think for some tokens; then its answer is what it would be after these tokens."""
    thought = [*json_tokenizer().encode("hm so"), THINK_END]
    start = len(json_tokenizer().encode("Ann is 12"))

    class Thinks:
        keeps_argmax = False

        def shape(self, logits, output_ids):
            if len(output_ids) < len(thought) and list(output_ids) == thought[: len(output_ids)]:
                logits[thought[len(output_ids)]] += 1000

    monkeypatch.setattr(new_sequences, "processors_of", lambda *_, **__: (Thinks(),))
    engine = grammar_engine(draft, depth=depth)
    request = constrained("one", CONSTRAINTS["person"], max_tokens=MAX_TOKENS, begins_after=(THINK_END,))
    (result,) = engine.generate([request])
    assert list(result.output_token_ids[: len(thought)]) == thought
    ids = torch.tensor([[*json_tokenizer().encode("Ann is 12"), *thought]])
    grammar = GrammarLogits(CONSTRAINTS["person"], start + len(thought))
    out = json_model().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_TOKENS - len(thought),
        pad_token_id=EOS,
        logits_processor=[grammar],
    )
    answer = [token for token in out[0, ids.shape[1] :].tolist() if token != EOS]
    assert list(result.output_token_ids[len(thought) :]) == answer


def test_a_model_that_never_ends_its_thinking_gives_no_valid_answer():
    request = constrained("one", CONSTRAINTS["choice"], max_tokens=10, begins_after=(THINK_END,))
    plain = constrained("two", None, max_tokens=10)
    thinking, free = grammar_engine("same").generate([request, plain])
    assert thinking.output_token_ids == free.output_token_ids
    assert thinking.is_valid is False


def test_aborting_a_constrained_request_leaves_the_others():
    engine = grammar_engine("same")
    requests = [constrained(f"{i}", CONSTRAINTS["person"], max_tokens=MAX_TOKENS) for i in range(3)]
    for request in requests:
        engine.add_request(request)
    engine.step()
    engine.abort("1")
    results = {}
    while engine.has_unfinished():
        results.update((result.request_id, result) for result in engine.step())
    assert results["1"].finish_reason is FinishReason.ABORTED
    assert results["0"].output_token_ids == results["2"].output_token_ids == expected("person")


def test_a_failed_step_is_repeated_with_the_same_answer(monkeypatch):
    engine = grammar_engine("same")
    original = type(opened(engine).target_pass).download
    calls = itertools.count()

    def fail_sometimes(self, scores):
        if next(calls) in (2, 9):
            raise EngineError("a step that fails")
        return original(self, scores)

    monkeypatch.setattr(type(opened(engine).target_pass), "download", fail_sometimes)
    requests = [constrained(kind, one, max_tokens=MAX_TOKENS) for kind, one in CONSTRAINTS.items()]
    assert [r.output_token_ids for r in engine.generate(requests)] == [expected(kind) for kind in CONSTRAINTS]


def test_each_choice_of_a_request_is_held_to_the_grammar():
    engine = grammar_engine("other")
    request = constrained("one", CONSTRAINTS["person"], max_tokens=80, temperature=1.0, n=4)
    (result,) = engine.generate([request])
    assert len(result.choices) == 4
    assert [choice.is_valid for choice in result.choices] == [
        choice.finish_reason is FinishReason.STOP for choice in result.choices
    ]
    assert len({choice.output_text for choice in result.choices}) > 1
    engine.check_integrity()


def test_a_complete_answer_ends_though_more_tokens_are_asked_for():
    """Nothing may follow and nothing may end it: the constraint stands above ``min_tokens``."""
    (result,) = grammar_engine("same").generate(
        [constrained("one", Constraint("regex", "[a-c]{3}"), max_tokens=20, min_tokens=10)]
    )
    assert (len(result.output_text), result.finish_reason, result.is_valid) == (3, FinishReason.STOP, True)
    longer = constrained("two", Constraint("regex", "[a-c]{3,}"), max_tokens=20, min_tokens=10)
    (result,) = grammar_engine("same").generate([longer])
    assert result.completion_tokens >= 10
    assert result.is_valid


def test_log_probabilities_are_the_models_own_before_the_mask():
    request = constrained("one", CONSTRAINTS["choice"], max_tokens=20, logprobs=0)
    (result,) = grammar_engine("same").generate([request])
    ids = [*request.prompt_token_ids, *result.output_token_ids]
    with torch.no_grad():
        rows = torch.log_softmax(json_model()(torch.tensor([ids])).logits[0].float(), dim=-1)
    start = len(request.prompt_token_ids)
    wanted = [float(rows[start - 1 + i, token]) for i, token in enumerate(result.output_token_ids)]
    assert result.logprobs is not None
    assert [one.logprob for one in result.logprobs] == pytest.approx(wanted, abs=1e-3)


def test_a_kept_stop_token_is_no_part_of_what_is_judged():
    request = constrained(
        "one",
        Constraint("regex", "[a-c]{3}"),
        ignore_eos=True,
        stop_token_ids=(END,),
        include_stop_str_in_output=True,
    )
    (result,) = grammar_engine("same").generate([request])
    assert result.is_valid


@pytest.mark.parametrize("draft", ["none", "same", "other"])
@pytest.mark.parametrize(
    "asked",
    [
        {"echo": True, "logprobs": 0},
        {"ignore_eos": True, "stop_token_ids": (END,), "include_stop_str_in_output": True},
    ],
    ids=["echo", "kept stop token"],
)
@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_no_stop_token_stands_behind_an_answer_that_is_whole_whatever_is_drafted(draft, asked, sampled):
    """A draft lets the step look beyond the answer's last token; what it sees there is no part of the answer."""
    engine = grammar_engine(draft, depth=4 if draft != "none" else 0)
    requests = [
        constrained(f"{length}", Constraint("regex", f"[a-c]{{{length}}}"), max_tokens=20, **asked, **sampled)
        for length in range(1, 7)
    ]
    for result, length in zip(engine.generate(requests), range(1, 7), strict=True):
        assert (len(result.output_text), result.is_valid) == (length, True)
        assert END not in result.output_token_ids
        assert result.logprobs is None or len(result.logprobs) == result.completion_tokens


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("person", "the JSON schema"),
        ("object", "the JSON object that is asked for"),
        ("regex", "the regular expression"),
        ("choice", "the list of choices"),
        ("grammar", "the grammar"),
    ],
)
def test_a_form_beside_which_no_token_is_left_is_named(kind, form):
    stuck = constrained("stuck", CONSTRAINTS[kind], max_tokens=8, allowed_token_ids=[EOS], bad_words=["never seen"])
    (failed,) = grammar_engine("none").generate([replace(stuck, bad_words=((5, 6, 7),))])
    assert str(failed.error) == (
        f"no token can begin the answer: {form} and allowed_token_ids and bad_words leave none; "
        f"let {form} allow more, or allow more tokens, or give fewer bad_words"
    )


def test_a_call_beside_which_no_token_is_left_is_named():
    tools = ToolUse(tools=({"type": "function", "function": {"name": "f"}},), is_required=True)
    stuck = replace(constrained("stuck", CONSTRAINTS["grammar"], max_tokens=8, allowed_token_ids=[EOS]), tools=tools)
    (failed,) = grammar_engine("none").generate([stuck])
    assert str(failed.error) == (
        "no token can begin the answer: tool_choice and allowed_token_ids leave none; "
        "give tool_choice auto, or allow more tokens"
    )
