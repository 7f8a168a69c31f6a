"""AnswerJudge: strangers' patterns come to an end in time, and the process behind it is replaced when it dies."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest

from helix_jobs.acceptance.judge import Answer
from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.errors import EngineError, ExhaustedError
from helix_jobs.worker import answer_judge
from helix_jobs.worker.answer_judge import AnswerJudge
from helix_jobs.worker.judge_process import answer as answer_in_process

TEXT = Answer("yes", 1, is_cut=False)
YES = AcceptanceRule(regex="yes")


@pytest.fixture
def judge():
    made = AnswerJudge(seconds=1.0)
    yield made
    made.close()


def judge_processes():
    """Ids of this process's children that judge answers."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "helix_jobs.worker.judge_process" in child.cmdline():
                found.add(child.pid)
    return found


@pytest.fixture
def pids():
    """Says which processes judge answers, but for those of other tests."""
    others = judge_processes()
    return lambda: judge_processes() - others


def doubling(levels):
    """A schema that asks the same question 2 ** levels times."""
    asked = {"a0": {"type": "string"}}
    for n in range(1, levels + 1):
        asked[f"a{n}"] = {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}, {"$ref": f"#/$defs/a{n - 1}"}]}
    return {"$defs": asked, "$ref": f"#/$defs/a{levels}"}


def test_patterns_are_judged_in_a_process_of_their_own(judge, pids):
    assert judge.judge(YES, TEXT, None) is None
    (first,) = pids()
    assert first != os.getpid()
    assert judge.judge(AcceptanceRule(regex="no"), TEXT, None) == "it does not match the regular expression"
    assert judge.judge(AcceptanceRule(schema=True), Answer('"a"', 1, is_cut=False), {"type": "string"}) is None
    assert pids() == {first}


def test_rules_without_a_pattern_need_no_process(judge, pids):
    assert judge.judge(AcceptanceRule(min_chars=9), TEXT, None) == "it has 3 characters, and min_chars is 9"
    assert not pids()


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("rule", "text"),
    [
        # Backtracking engines need hours for the first; in an automaton it is quick.
        (AcceptanceRule(regex="(x+x+)+y"), "x" * 20_000),
        (AcceptanceRule(regex=".*a[ab]{7000}c"), "ab" * 100_000),
        (AcceptanceRule(schema=doubling(60)), '"a"'),
    ],
)
def test_a_hostile_pattern_comes_to_an_end(judge, rule, text):
    began = time.process_time()
    assert judge.judge(rule, Answer(text, 1, is_cut=False), None) is not None
    assert time.process_time() - began < 20, "it held up this process"
    assert judge.judge(YES, TEXT, None) is None, "the next answer is judged"


def test_a_process_that_was_killed_is_replaced(judge, pids):
    judge.judge(YES, TEXT, None)
    (killed,) = pids()
    os.kill(killed, signal.SIGKILL)
    assert judge.judge(YES, TEXT, None) is None
    (second,) = pids()
    assert second != killed


def test_a_process_that_dies_each_time_is_no_verdict_on_the_answer(judge, monkeypatch):
    monkeypatch.setattr(answer_judge, "_MODULE", "helix_jobs.nothing_of_this_name")
    with pytest.raises(EngineError, match="the process that judges answers ended"):
        judge.judge(YES, TEXT, None)


def test_no_job_is_to_blame_where_no_process_can_be_started(judge, monkeypatch):
    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(answer_judge, "BoundedProcess", none_left)
    with pytest.raises(ExhaustedError):
        judge.judge(YES, TEXT, None)


def test_a_rule_that_needs_too_much_memory_refuses(monkeypatch):
    def greedy(*_):
        raise MemoryError

    monkeypatch.setattr("helix_jobs.worker.judge_process.judge", greedy)
    request = {"rule": YES.to_dict(), "answer": {"text": "yes", "tokens": 1, "is_cut": False}, "own_schema": None}
    assert "too much memory" in answer_in_process(request)["reason"]
