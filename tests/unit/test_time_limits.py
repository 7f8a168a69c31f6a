"""Spans of time that depend on each other cannot be set so that they contradict each other."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.time_limits import _RULES, DEFAULT_TIME_LIMITS, TimeLimits

# What is changed, and the spans and values that the error names.
BROKEN = [
    ({"lease_check": 5.1}, "lease_check is 5.1 s and heartbeat is 5 s"),
    ({"heartbeat": 8.0}, "heartbeat + lease_check + reconcile is 10 s and own_silence is 10 s"),
    ({"reconcile": 4.0}, "heartbeat + lease_check + reconcile is 10 s and own_silence is 10 s"),
    ({"own_silence": 30.0}, "own_silence is 30 s and lease is 30 s"),
    ({"lease": 20.0}, "idle_transaction is 20 s and lease is 20 s"),
    ({"idle_transaction": 31.0}, "idle_transaction is 31 s and lease is 30 s"),
    ({"statement": 45.5}, "statement + answer_margin is 60.5 s and close_call is 60 s"),
    ({"answer_margin": 16.0}, "statement + answer_margin is 61 s and close_call is 60 s"),
    ({"close_call": 120.0}, "close_call is 120 s and end_process is 120 s"),
    ({"free_connection": 100.0}, "idle_writer + free_connection + sign_of_life is 120 s and end_process is 120 s"),
    ({"watchdog_look": 59.0, "end_process": 110.0}, "watchdog_look + statement + answer_margin is 119 s"),
    ({"republish": 31.0}, "republish + republish is 62 s and watchdog_window is 60 s"),
    ({"watchdog_look": 60.0, "end_process": 200.0}, "watchdog_look is 60 s and watchdog_window is 60 s"),
    ({"solitude": 5.0}, "postponed is 5 s and solitude is 5 s"),
]


@pytest.mark.parametrize(("changes", "named"), BROKEN)
def test_a_timing_that_breaks_a_rule_is_refused(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        TimeLimits(**changes)


def test_each_rule_is_broken_by_one_of_these() -> None:
    tried = "; ".join(named for _, named in BROKEN)
    assert [rule for rule in _RULES if f"{' + '.join(rule.shorter)} is " not in tried] == []


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_span_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="time limits: audit is "):
        TimeLimits(audit=seconds)


def test_spans_may_be_shortened_together() -> None:
    quick = TimeLimits(heartbeat=0.2, lease_check=0.1, reconcile=0.1, own_silence=1.2, idle_transaction=1.2, lease=2.0)
    assert quick.watchdog_window == DEFAULT_TIME_LIMITS.watchdog_window


def test_it_brings_in_neither_torch_nor_sqlalchemy() -> None:
    program = "import sys, helix_jobs.time_limits; print(*({'torch', 'sqlalchemy', 'celery'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []
