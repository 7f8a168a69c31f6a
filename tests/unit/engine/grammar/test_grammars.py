"""Constraints are compiled once, within limits; a hostile one fails alone, in time."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from helix_jobs.engine.constraint import Constraint, InvalidConstraintError
from helix_jobs.engine.grammar import grammars as module
from helix_jobs.engine.grammar.grammars import Grammars
from helix_jobs.engine.grammar.llguidance_grammar import compile_grammar
from helix_jobs.engine.grammar.trial import DEFAULT_TRIAL_LIMITS, GrammarTrial
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from tests.unit.engine.grammar_models import CONSTRAINTS, grammar_engine, json_tokenizer, table, vocab_size
from tests.unit.engine.tiny_models import EOS, tokenizer

# Each takes long, or is refused by the library's own limits.
HOSTILE = {
    "patterns": Constraint(
        "json_schema",
        json.dumps({"allOf": [{"type": "string", "pattern": f"^.*(a|b|c).{{{i}}}x.*$"} for i in range(30)]}),
    ),
    "multiple": Constraint(
        "json_schema", json.dumps({"type": "integer", "multipleOf": 999983, "minimum": 0, "maximum": 10**18})
    ),
    "product": Constraint(
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(4)]} for i in range(12)
                ]
            }
        ),
    ),
    "nested": Constraint("regex", "(" * 100_000 + ")" * 100_000),
    "repeated": Constraint("regex", "a{1000000000}"),
    "endless": Constraint("json_schema", json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
    "no JSON": Constraint("json_schema", "{"),
    "no regex": Constraint("regex", "a("),
    "no grammar": Constraint("grammar", "start: nothing"),
}


def describe():
    return TokenTable.of(json_tokenizer(), vocab_size(), (EOS,))


@pytest.fixture(scope="module")
def impatient():
    """A trial that gives a constraint one second."""
    made = GrammarTrial(describe(), replace(DEFAULT_TRIAL_LIMITS, seconds=1.0))
    yield made
    made.close()


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_is_refused_and_the_next_one_is_not(impatient, name):
    with pytest.raises(GrammarError):
        impatient.check(HOSTILE[name])
    impatient.check(CONSTRAINTS["regex"])


@pytest.mark.thorough
def test_a_job_with_a_hostile_constraint_fails_alone(monkeypatch):
    monkeypatch.setattr(
        module, "GrammarTrial", lambda one: GrammarTrial(one, replace(DEFAULT_TRIAL_LIMITS, seconds=1.0))
    )
    engine = grammar_engine()
    requests = [
        Request(
            request_id=name,
            prompt_token_ids=(5, 6),
            seed=1,
            sampling_params=SamplingParams(max_tokens=8),
            constraint=constraint,
        )
        for name, constraint in (("bad", HOSTILE["patterns"]), ("good", CONSTRAINTS["choice"]))
    ]
    bad, good = engine.generate(requests)
    assert isinstance(bad.error, GrammarError)
    assert good.is_valid
    engine.close()


def test_a_constraint_is_compiled_once_also_if_many_ask_at_once(monkeypatch):
    compiled = []
    original = module.compile_grammar
    monkeypatch.setattr(module, "compile_grammar", lambda *both: compiled.append(1) or original(*both))
    made, found = Grammars(describe), []
    threads = [threading.Thread(target=lambda: found.append(made.compile(CONSTRAINTS["person"]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert len(set(map(id, found))) == 1
    made.close()


def test_only_the_latest_constraints_are_kept(monkeypatch):
    compiled = []
    original = module.compile_grammar
    monkeypatch.setattr(module, "compile_grammar", lambda one, two: compiled.append(one.value) or original(one, two))
    made = Grammars(describe, kept=2)
    for value in ("a", "b", "a", "c", "a", "b"):
        made.compile(Constraint("regex", value))
    assert compiled == ["a", "b", "c", "b"]
    made.close()


def test_a_refused_constraint_is_tried_once(monkeypatch):
    tried = []
    original = GrammarTrial.check
    monkeypatch.setattr(GrammarTrial, "check", lambda self, one: tried.append(1) or original(self, one))
    made = Grammars(describe)
    for _ in range(2):
        with pytest.raises(GrammarError, match="regex"):
            made.compile(HOSTILE["no regex"])
    assert len(tried) == 1
    made.close()


def test_a_condemned_grammar_fails_for_everybody():
    grammar = module.compile_grammar(CONSTRAINTS["choice"], table())
    matcher = grammar.matcher()
    grammar.condemn("too slow")
    for one in (matcher, grammar.matcher()):
        with pytest.raises(GrammarError, match="too slow"):
            one.advance([5])


def test_a_tokenizer_that_the_library_cannot_read_is_served_by_its_texts():
    """As in ``tiny_models``: each character is a token, and the decoder joins them."""
    described = TokenTable.of(tokenizer(), len(tokenizer()) + 3, (EOS,))
    assert described == TokenTable.from_json(json.loads(json.dumps(described.to_json())))
    grammar = module.compile_grammar(Constraint("regex", "ab(c|d)"), described.build())
    matcher = grammar.matcher()
    ids = tokenizer().convert_tokens_to_ids(["a", "b"])
    assert list(matcher.forced()) == ids
    assert matcher.advance([*ids, EOS]) == 2
    assert not matcher.is_accepting
    assert grammar.accepts("abd")
    assert not grammar.accepts("ab")


def test_a_constraint_is_read_back_as_it_was_stored():
    for constraint in CONSTRAINTS.values():
        assert Constraint.from_mapping(json.loads(json.dumps(constraint.to_dict()))) == constraint
    for bad in ({}, {"kind": "xml"}, {"kind": "regex", "value": 3}, {"kind": "regex", "what": "a"}):
        with pytest.raises(InvalidConstraintError):
            Constraint.from_mapping(bad)
    with pytest.raises(InvalidConstraintError):
        Constraint("regex", "a", "none")


def test_a_tokenizer_that_the_library_cannot_read_is_tried_once():
    asked = []

    def describe_broken():
        asked.append(1)
        return replace(describe(), backend="{}", texts=())

    grammars = Grammars(describe_broken)
    for regex in ("a", "b"):
        with pytest.raises(GrammarError, match="cannot read this model's tokenizer"):
            grammars.compile(Constraint("regex", regex))
    assert len(asked) == 1


def test_a_name_of_any_of_many_lengths_is_followed_to_its_end():
    """Its first characters need more than a step may take by the library's own limit."""
    schema = {"patternProperties": {"[A-Za-z0-9-_.:]{1,255}": {"type": "string", "format": "uri"}}}
    tokenizer = describe().build()
    grammar = compile_grammar(Constraint("json_schema", json.dumps(schema)), tokenizer)
    matcher, mask = grammar.matcher(), np.zeros(grammar.mask_bytes, dtype=np.uint8)
    for token_id in tokenizer.tokenize_str('{"child-3":"https://example.com/child-3"}'):
        matcher.fill_mask(mask)
        assert mask[token_id >> 3] >> (token_id & 7) & 1
        assert matcher.advance([token_id]) == 1
    assert matcher.is_accepting
