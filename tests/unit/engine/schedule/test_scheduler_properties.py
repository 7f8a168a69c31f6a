"""Scheduler, blocks and prefix cache under random arrivals, aborts, preemptions, rejections and faults."""

from __future__ import annotations

import random
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helix_jobs.bounds import INTERACTIVE_PRIORITY
from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.schedule import admission, precedence
from helix_jobs.errors import EngineError, OutOfMemoryError
from tests.unit.engine.schedule.scheduling import make, sequence_of
from tests.unit.engine.scripted_target import STOP, VOCAB_SIZE, ScriptedTarget, sequential

MAX_STEPS = 4000

# Three families of prompts; within one, any two are equal as far as both are "shared".
FAMILIES = [[random.Random(seed).randrange(1, VOCAB_SIZE) for _ in range(60)] for seed in range(3)]


@dataclass(frozen=True)
class Arrival:
    step: int
    family: int
    num_shared: int
    num_own: int
    max_tokens: int
    priority: int = 0

    def prompt(self, number: int) -> list[int]:
        own = random.Random(100 + number)
        return FAMILIES[self.family][: self.num_shared] + [own.randrange(1, VOCAB_SIZE) for _ in range(self.num_own)]


arrivals = st.builds(
    Arrival,
    step=st.integers(0, 25),
    family=st.integers(0, 2),
    num_shared=st.integers(0, 30),
    num_own=st.integers(1, 20),
    max_tokens=st.integers(1, 30),
    priority=st.sampled_from([0, 0, 0, 3, INTERACTIVE_PRIORITY]),
)
events = st.tuples(
    st.sampled_from(["pass", "pass", "pass", "pass", "abort", "spoil", "fail", "preempt"]), st.integers(0)
)


class Scenario:
    """Runs one random history and checks it after every step."""

    def __init__(self, planned, seed, *, num_blocks, block_size, depth, budget, slots, **sections):
        limits = {"token_budget": budget, "max_batch_size": slots}
        self.scheduler, self.pool = make(num_blocks, block_size, depth, **sections, **limits)
        self.target = ScriptedTarget(self.scheduler, self.pool, seed)
        self.planned = sorted(planned, key=lambda arrival: arrival.step)
        self.sequences = []
        self.ended = []
        self.first_admissions = []

    def run(self, history):
        for step in range(MAX_STEPS):
            self._arrive(step)
            self.ended += self.scheduler.drop_finished()
            self._check()
            if not self.scheduler.has_unfinished() and not self.planned:
                return
            schedule = self.scheduler.schedule()
            self._note_admissions()
            self._check()
            name, choice = history[step] if step < len(history) else ("pass", 0)
            self._happen(schedule, name, choice)
            self._check()
        raise AssertionError("the engine never finishes")

    def _arrive(self, step):
        while self.planned and self.planned[0].step <= step:
            arrival = self.planned.pop(0)
            number = len(self.sequences)
            sequence = sequence_of(
                self.pool, str(number), arrival.prompt(number), arrival.max_tokens, priority=arrival.priority
            )
            sequence.stop_token_ids = frozenset({STOP})
            if len(sequence) >= sequence.table.pool_capacity:  # as Engine.add_request does
                sequence.fail(OutOfMemoryError("too long"))
            self.sequences.append(sequence)
            self.scheduler.add(sequence)

    def _note_admissions(self):
        new = [s for s in self.scheduler.running if s.admitted_at is not None and s not in self.first_admissions]
        self.first_admissions += new
        for sequence in new:
            assert 0 <= sequence.cached_prompt_tokens < sequence.num_prompt_tokens

    def _happen(self, schedule, name, choice):
        active = self.scheduler.active
        if name == "abort" and self.sequences:
            victim = self.sequences[choice % len(self.sequences)]
            if victim not in self.ended and victim.finish_reason is None and victim.error is None:
                self.target.run(schedule)
                self.scheduler.abort(victim)
                return
        if name == "fail" and schedule.num_sequences:
            self.target.fail(schedule)
            return
        if name == "spoil" and active:
            self.target.run(schedule, spoil=active[choice % len(active)].request_id)
        else:
            self.target.run(schedule)
        if name == "preempt":
            self.scheduler.preempt_youngest(1 + choice % 3)
        self.scheduler.step_passed()

    def _check(self):
        self.pool.check_integrity(s.table for s in self.sequences)
        assert self.target.clean()
        assert all(s.num_overtaken <= admission.MAX_OVERTAKEN for s in self.sequences)
        assert all(s.num_deferred <= admission.MAX_DEFERRED for s in self.sequences)
        assert all(not s.table.blocks for s in self.scheduler.waiting)
        assert all(s.num_displaced <= precedence.MAX_DISPLACED for s in self.sequences)
        for line in (self.scheduler.running, self.scheduler.waiting):
            assert [s.priority for s in line] == sorted((s.priority for s in line), reverse=True)

    def check_end(self):
        assert sorted(self.ended, key=id) == sorted(self.sequences, key=id), "every request ended once"
        assert self.pool.num_free == self.pool.num_blocks
        for sequence in self.sequences:
            expected = sequential(sequence.request.prompt_token_ids, sequence.params.max_tokens)
            output = sequence.output_token_ids
            if sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert output == expected
            else:
                assert output == expected[: len(output)]
            if sequence.finish_reason is None:
                self._check_error(sequence)

    def _check_error(self, sequence):
        if isinstance(sequence.error, OutOfMemoryError):
            assert len(sequence) + 1 > self.pool.capacity - self.scheduler._depth
        else:
            assert isinstance(sequence.error, EngineError)
            assert sequence.request_id in self.target.spoilt

    def check_order(self):
        """Counted from outside: who was first admitted before whom of its priority, although it came later."""
        arrived = {id(sequence): number for number, sequence in enumerate(self.sequences)}
        for place, sequence in enumerate(self.first_admissions):
            earlier = [one for one in self.first_admissions[:place] if one.priority == sequence.priority]
            assert sum(arrived[id(other)] > arrived[id(sequence)] for other in earlier) <= admission.MAX_OVERTAKEN


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(
    planned=st.lists(arrivals, min_size=1, max_size=14),
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(6, 60),
    block_size=st.integers(1, 6),
    depth=st.integers(0, 5),
    budget=st.integers(1, 60),
    slots=st.integers(1, 6),
    windows=st.sampled_from([(None,), (None,), (9,), (None, 6), (None, 12, 12, 3)]),
    has_draft=st.booleans(),
    history=st.lists(events, max_size=60),
)
def test_any_history_gives_the_sequential_outputs_and_loses_no_block(*, planned, seed, history, **config):
    with mock.patch.object(admission, "MAX_OVERTAKEN", 3), mock.patch.object(precedence, "MAX_OVERTAKEN", 3):
        scenario = Scenario(planned, seed, **config)
        scenario.run(history)
        scenario.check_order()
    scenario.check_end()
    event(f"shared: {scenario.scheduler.cached_prompt_tokens > 0}")
    event(f"preempted: {scenario.scheduler.preemptions > 0}")
    event(f"overtaken: {any(s.num_overtaken for s in scenario.sequences)}")
    event(f"displaced: {any(s.num_displaced for s in scenario.sequences)}")
    event(f"windows: {config['windows']}")
    event(f"spoilt: {bool(scenario.target.spoilt)}")


def test_a_crowd_with_common_prefixes_computes_each_of_them_once():
    crowd = [Arrival(0, number % 3, 30, 5, 12) for number in range(24)]
    scenario = Scenario(crowd, 1, num_blocks=200, block_size=5, depth=3, budget=64, slots=8)
    scenario.run([])
    scenario.check_end()
    assert scenario.scheduler.cached_prompt_tokens == (24 - 3) * 30
