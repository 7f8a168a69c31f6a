"""A mask depends on the tokens before it alone, whatever way the matcher came there."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.sampling.mask_worker import MaskWorker
from helix_jobs.engine.sampling.output_grammar import OutputGrammar
from tests.unit.engine.grammar_models import (
    CONSTRAINTS,
    END,
    THINK_END,
    GrammarLogits,
    compiled,
    json_tokenizer,
    thinks_until,
    vocab_size,
)
from tests.unit.engine.tiny_models import EOS

FORBIDDEN = float("-inf")


@pytest.fixture
def worker():
    made = MaskWorker()
    yield made
    made.close()


def output_grammar(constraint, worker, stops=(EOS,), begins_after=()):
    return OutputGrammar(compiled(constraint), worker, stops, thinks_until(begins_after) if begins_after else None)


def allowed(grammar, output_ids):
    logits = torch.zeros(vocab_size())
    grammar.shape(logits, output_ids)
    return (logits != FORBIDDEN).nonzero()[:, 0].tolist()


def some_output(constraint, numbers):
    """An output that the grammar allows, one token for each number."""
    grammar = GrammarLogits(constraint, 0)
    ids = []
    for number in numbers:
        tokens = [token for token in grammar.mask(ids).nonzero()[:, 0].tolist() if token != EOS]
        if not tokens:
            break
        ids.append(tokens[number % len(tokens)])
    return ids


@settings(max_examples=60, deadline=5000)
@given(
    st.sampled_from(sorted(CONSTRAINTS)),
    st.lists(st.integers(0, 999), min_size=1, max_size=16),
    st.lists(st.tuples(st.integers(0, 99), st.lists(st.integers(0, 400), max_size=3)), min_size=1, max_size=12),
)
def test_any_walk_leads_to_the_mask_of_the_prefix(kind, numbers, visits):
    """Each visit goes to some prefix of an allowed output, perhaps followed by tokens of a poor draft."""
    constraint, worker = CONSTRAINTS[kind], MaskWorker()
    ids = some_output(constraint, numbers)
    fresh, grammar = GrammarLogits(constraint, 0), output_grammar(constraint, worker)
    try:
        for place, rubbish in visits:
            prefix = ids[: place % (len(ids) + 1)]
            allowed(grammar, [*prefix, *rubbish])
            assert allowed(grammar, prefix) == fresh.mask(prefix).nonzero()[:, 0].tolist()
            forced = list(grammar.forced(prefix))
            mask = fresh.mask(prefix)
            for token in [*rubbish, 0, 7, len(mask) - 1, int(mask.nonzero()[0, 0])]:
                if token < len(mask) and token != EOS:
                    chosen = grammar.choose(token, torch.arange(len(mask), dtype=torch.float32), prefix)
                    assert (chosen == token) == bool(mask[token])
            for length, token in enumerate(forced):
                assert fresh.mask([*prefix, *forced[:length]]).nonzero()[:, 0].tolist() == [token]
    finally:
        worker.close()


def test_masks_computed_ahead_are_those_computed_one_by_one(worker):
    constraint = CONSTRAINTS["person"]
    ids = some_output(constraint, range(100, 130, 3))
    ahead, single = output_grammar(constraint, worker), output_grammar(constraint, worker)
    worker.run(ahead.job(ids[:3], ids[3:]))
    for length in range(3, len(ids) + 1):
        assert allowed(ahead, ids[:length]) == allowed(single, ids[:length])


def test_stop_tokens_are_those_of_the_request(worker):
    grammar = output_grammar(Constraint("regex", "a*"), worker, stops=(END,))
    a = json_tokenizer().encode("a")
    assert END in allowed(grammar, a)
    assert EOS not in allowed(grammar, a)
    grammar = output_grammar(Constraint("regex", "a{3}"), worker, stops=(EOS, END))
    assert not {EOS, END} & set(allowed(grammar, a))


def test_everything_is_allowed_while_the_model_thinks(worker):
    grammar = output_grammar(Constraint("regex", "a{3}"), worker, begins_after=(THINK_END, END))
    a = json_tokenizer().encode("a")
    everything = list(range(vocab_size()))
    for thinking in ([], [5, 6], [5, THINK_END], [THINK_END, 7, END]):
        assert allowed(grammar, thinking) == everything
        assert not grammar.forced(thinking)
        assert not grammar.is_accepting(thinking)
    begun = [5, THINK_END, END]
    assert set(allowed(grammar, begun)) <= set(allowed(output_grammar(Constraint("regex", "a{3}"), worker), []))
    assert grammar.is_complete([*begun, *a, *a, *a])
    assert allowed(grammar, [5, THINK_END]) == everything, "a draft that ended the thinking was rejected"
    assert allowed(grammar, [5, THINK_END, 7, THINK_END, END, *a]) == allowed(grammar, [*begun, *a])


class Scripted:
    """A grammar of one's own behind the seam: any tokens, until a mask is asked for behind token 9."""

    kind = "grammar"
    mask_bytes = (vocab_size() + 31) // 32 * 4
    end_token_ids = frozenset({EOS})

    def __init__(self, *, hangs=False):
        self.condemned = ""
        self.gate = threading.Event()
        self.hangs = hangs

    def matcher(self):
        return ScriptedMatcher(self)

    def accepts(self, text):
        return bool(text)

    def condemn(self, reason):
        self.condemned = reason


class ScriptedMatcher:
    is_accepting = False
    is_complete = False

    def __init__(self, grammar):
        self.grammar, self.ids = grammar, []

    def advance(self, token_ids):
        self.ids += token_ids
        return len(token_ids)

    def rewind(self, count):
        del self.ids[len(self.ids) - count :]

    def fill_mask(self, mask):
        if self.ids[-1:] == [9]:
            if self.grammar.hangs:
                self.grammar.gate.wait()
            raise GrammarError("token 9 is too much")
        mask[:] = 0
        mask[0] = 0b1111_1000

    def allows(self, token_id):
        return 3 <= token_id <= 7

    def forced(self):
        return ()


def test_an_error_behind_a_rejected_draft_is_forgotten(worker):
    grammar = OutputGrammar(Scripted(), worker, (EOS,))
    worker.run(grammar.job([3], [9]))
    assert "token 9" in str(grammar.error)
    assert allowed(grammar, [3, 9]) == []
    assert allowed(grammar, [3, 4]) == [3, 4, 5, 6, 7]
    assert grammar.error is None
    assert allowed(grammar, [3]) == [3, 4, 5, 6, 7]


def test_a_mask_that_never_comes_is_given_up_and_the_others_are_computed():
    worker = MaskWorker(seconds=0.2)
    stuck, fine = Scripted(hangs=True), Scripted()
    hostile, other = OutputGrammar(stuck, worker, (EOS,)), OutputGrammar(fine, worker, (EOS,))
    worker.start([other.job([3]), hostile.job([9]), other.job([3, 4])])
    worker.finish()
    assert "0.2 s" in str(hostile.error)
    assert stuck.condemned
    assert allowed(hostile, [9]) == []
    assert not fine.condemned
    assert allowed(other, [3, 4]) == [3, 4, 5, 6, 7]
    stuck.gate.set()
    worker.close()


def test_a_job_that_fails_is_given_up(worker, monkeypatch):
    grammar = OutputGrammar(Scripted(), worker, (EOS,))
    monkeypatch.setattr(ScriptedMatcher, "fill_mask", lambda *_: np.zeros(0)[1])
    worker.run(grammar.job([3]))
    assert "cannot be computed" in str(grammar.error)


@pytest.mark.parametrize("opening", [(END,), (END, 7)])
def test_a_model_that_may_think_begins_with_its_thinking_or_with_the_grammar(worker, opening):
    def may(one, ids):
        return set(allowed(one, ids))

    form = dataclasses.replace(
        thinks_until((THINK_END,)),
        opening="".join(f"<{token_id}>" for token_id in opening),
        opening_ids=opening,
        pieces={token_id: f"<{token_id}>" for token_id in (*opening, THINK_END)},
        starts_open=False,
    )
    grammar = OutputGrammar(compiled(Constraint("regex", "a{3}")), worker, (EOS,), form)
    plain = output_grammar(Constraint("regex", "a{3}"), worker)
    a = json_tokenizer().encode("a")
    assert may(grammar, []) == may(plain, []) | {opening[0]}
    assert not grammar.forced([])
    assert may(grammar, a) == may(plain, a)
    for length in range(1, len(opening)):
        assert may(grammar, opening[:length]) == {opening[length]}
    assert len(may(grammar, [*opening, 5])) > len(may(plain, [])) + 1
    assert may(grammar, [*opening, 5, THINK_END]) == may(plain, [])
    assert may(grammar, [*opening, 5, THINK_END, *a]) == may(plain, a)
    assert may(grammar, []) == may(plain, []) | {opening[0]}, "a draft that thought was rejected"
    assert grammar.is_accepting([*opening, THINK_END, *a, *a, *a])
    assert grammar.is_accepting([*a, *a, *a])
    logits = torch.zeros(vocab_size())
    assert grammar.choose(opening[0], logits.clone(), []) == opening[0]
