"""Steps that fail: for want of memory, by one request's fault, or by the device's. Nobody else fails with them."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from helix_jobs.errors import EngineBrokenError, EngineError, OutOfMemoryError
from tests.unit.engine.failing_steps import FaultyStep
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.ragged_prompts import prompts
from tests.unit.engine.tiny_models import greedy_beside_each, request, tiny_engine, tiny_model


@pytest.mark.parametrize("draft", ["none", "int8"])
def test_out_of_memory_shrinks_the_batch_and_changes_nothing(draft):
    model = tiny_model(seed=3)
    texts = prompts(12)
    engine = tiny_engine(model, draft, max_batch_size=12)
    failing = opened(engine).replace_step(FaultyStep, RuntimeError("Could not allocate tensor with 99 bytes"), limit=4)
    results = engine.generate(request(str(i), p, max_tokens=12) for i, p in enumerate(texts))
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, texts, outputs, 12)
    assert failing.failures > 0
    engine.check_integrity()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("boom"), EngineError),
        (torch.OutOfMemoryError("x"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
    ],
)
def test_a_poisonous_request_is_found_and_fails_alone(error, expected, caplog):
    model = tiny_model(seed=3)
    texts = prompts(9)
    engine = tiny_engine(model, "same", max_batch_size=9)
    opened(engine).replace_step(FaultyStep, error, poison="5")
    results = engine.generate(request(str(i), p, max_tokens=8) for i, p in enumerate(texts))
    poisoned = results.pop(5)
    assert type(poisoned.error) is expected
    assert poisoned.finish_reason is None
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, texts[:5] + texts[6:], outputs, 8)
    engine.check_integrity()


class Outage(SpeculativeStep):
    """The device fails for a stretch of steps, whatever is in the batch."""

    def __init__(self, step, first, last):
        self.__dict__.update(step.__dict__)
        self.number, self.first, self.last = 0, first, last

    def run(self, schedule):
        self.number += 1
        if self.first <= self.number < self.last:
            raise RuntimeError("device removed")
        return super().run(schedule)


def test_a_short_outage_fails_nobody():
    model = tiny_model(seed=3)
    texts = prompts(8)
    engine = tiny_engine(model, "same", max_batch_size=8)
    opened(engine).replace_step(Outage, 3, 7)
    results = engine.generate(request(str(i), p, max_tokens=12) for i, p in enumerate(texts))
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, texts, outputs, 12)


def test_a_lasting_outage_breaks_the_engine_and_fails_nobody():
    engine = tiny_engine(max_batch_size=8)
    opened(engine).replace_step(Outage, 2, 10_000)
    for i, prompt in enumerate(prompts(20)):
        engine.add_request(request(str(i), prompt, max_tokens=40, ignore_eos=True))
    ended = []

    def run():
        while True:
            ended.extend(engine.step())

    with pytest.raises(EngineBrokenError, match="in a row failed alone"):
        run()
    assert ended == []
    assert opened(engine).num_unfinished == 20


def test_the_last_request_of_all_fails_if_it_fails_alone():
    engine = tiny_engine()
    opened(engine).replace_step(Outage, 1, 10_000)
    (result,) = engine.generate([request("a", [1, 2, 3])])
    assert isinstance(result.error, EngineError)


def test_a_suspect_can_be_aborted():
    engine = tiny_engine(max_batch_size=1)
    opened(engine).replace_step(FaultyStep, RuntimeError("boom"), poison="a")
    engine.add_request(request("a", [1, 2, 3]))
    engine.add_request(request("b", [1, 2, 3], max_tokens=5, ignore_eos=True))
    engine.step()
    assert engine._recovery.has_suspects
    engine.abort("a")
    results = {}
    while engine.has_unfinished():
        results.update((r.request_id, r) for r in engine.step())
    assert results["a"].finish_reason is FinishReason.ABORTED
    assert results["b"].completion_tokens == 5


def test_a_lost_block_is_found_and_taken_back(caplog):
    engine = tiny_engine()
    opened(engine).pool.take(3)
    (result,) = engine.generate([request("a", [1, 2, 3], max_tokens=4)])
    assert result.error is None
    assert "lost its integrity" in caplog.text
    engine.check_integrity()
