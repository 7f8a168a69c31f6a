"""What the engine does about steps that fail: dead devices, lasting shortages, results that wait to be handed over."""

from __future__ import annotations

import errno
import itertools
import random

import pytest
import torch

from helix_jobs.engine import recovery
from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.devices.devices import check_alive, is_out_of_memory
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.schedule.lowered_limit import BackOff
from helix_jobs.engine.speculation.depth.costs import CostProfile
from helix_jobs.errors import EngineBrokenError, OutOfMemoryError
from tests.unit.engine.devices.simulated_directml import DIRECTML, SimulatedDirectml
from tests.unit.engine.failing_steps import FailingStep
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    greedy_beside_each,
    loaded,
    reference_greedy,
    request,
    tiny_engine,
    tiny_model,
)


def prompts(count=6, seed=4):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(2, 30))] for _ in range(count)]


def prefill_tokens(schedule):
    return sum(prefill.num_tokens for prefill in schedule.prefills)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("Could not allocate tensor with 99 bytes. There is not enough GPU video memory available!"),
        RuntimeError("OOM when allocating a buffer of 123 bytes"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Native API failed. Native API returns: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
        RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_every_backend_s_words_for_out_of_memory_are_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "device removed", "CUBLAS_STATUS_EXECUTION_FAILED"]
)
def test_other_faults_are_not_taken_for_it(text):
    assert not is_out_of_memory(RuntimeError(text))


# A device that is gone


def dead(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


@pytest.mark.parametrize("part", ["cleanup_memory", "check_alive"])
def test_a_dead_device_breaks_the_engine_at_once_and_fails_nobody(monkeypatch, part):
    engine = tiny_engine(max_batch_size=8)
    for i, prompt in enumerate(prompts(8)):
        engine.add_request(request(str(i), prompt, max_tokens=40, ignore_eos=True))
    engine.step()
    failing = opened(engine).replace_step(
        FailingStep, lambda _: True, RuntimeError("CUDA error: an illegal memory access")
    )
    monkeypatch.setattr(recovery, part, dead)
    with pytest.raises(
        EngineBrokenError, match=r"no longer computes \(RuntimeError: CUDA error: an illegal memory acc"
    ):
        engine.step()
    assert failing.failures == 1
    assert opened(engine).num_unfinished == 8


def test_an_exhausted_machine_is_nobody_s_fault(monkeypatch):
    """It is not looked for in halves of the batch, nor taken for a dead device, whose trial needs descriptors too."""
    engine = tiny_engine(max_batch_size=8)
    for i, prompt in enumerate(prompts(8)):
        engine.add_request(request(str(i), prompt, max_tokens=40, ignore_eos=True))
    engine.step()
    failing = opened(engine).replace_step(FailingStep, lambda _: True, OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(recovery, "check_alive", dead)
    with pytest.raises(OSError, match="Too many open files"):
        engine.step()
    assert failing.failures == 1
    assert opened(engine).num_unfinished == 8


def test_what_ended_before_the_device_died_is_handed_over_first(monkeypatch):
    engine = tiny_engine(max_batch_size=2)
    for name in ("a", "b"):
        engine.add_request(request(name, [3, 4, 5], max_tokens=40, ignore_eos=True))
    engine.step()
    engine.abort("a")
    opened(engine).replace_step(FailingStep, lambda _: True)
    monkeypatch.setattr(recovery, "cleanup_memory", dead)
    assert [(r.request_id, r.finish_reason) for r in engine.step()] == [("a", FinishReason.ABORTED)]
    assert engine.has_unfinished()
    with pytest.raises(EngineBrokenError):
        engine.step()


def test_blocks_that_cannot_be_cleared_break_the_engine(monkeypatch):
    """Values that are not finite must not reach the next owner of a block."""
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    engine = tiny_engine(model, "none")
    monkeypatch.setattr(opened(engine).step, "clear_blocks", dead)
    engine.add_request(request("a", [3, 30, 4]))
    with pytest.raises(EngineBrokenError, match="cannot be cleared"):
        engine.step()


def test_asking_a_device_whether_it_is_alive_keeps_to_directml_s_rules():
    with SimulatedDirectml() as device:
        check_alive(DIRECTML)
    assert device.downloads == 1
    assert not device.breaches


def test_an_engine_whose_device_died_can_be_closed(monkeypatch, caplog):
    engine = tiny_engine()
    engine.add_request(request("a", [1, 2, 3]))
    monkeypatch.setattr("helix_jobs.engine.engine.cleanup_memory", dead)
    engine.close()
    assert not engine.has_unfinished()
    assert "does not take its memory back" in caplog.text


def test_a_device_without_a_byte_to_spare_is_not_taken_for_dead(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(recovery, "check_alive", full)
    engine = tiny_engine(max_batch_size=8)
    opened(engine).replace_step(FailingStep, lambda schedule: schedule.num_sequences > 2)
    results = engine.generate(request(str(i), p, max_tokens=6) for i, p in enumerate(prompts(8)))
    assert all(result.error is None for result in results)


# Out of memory


def test_a_prompt_that_is_too_much_at_once_is_computed_in_smaller_chunks():
    model = tiny_model(seed=3, max_position_embeddings=2048)
    prompt = [3 + i % 20 for i in range(700)]
    engine = tiny_engine(model, "none", num_blocks=400, block_size=4, token_budget=512)
    failing = opened(engine).replace_step(FailingStep, lambda schedule: prefill_tokens(schedule) > 150)
    object.__setattr__(engine._info, "max_model_len", 2048)
    (result,) = engine.generate([request("long", prompt, max_tokens=8)])
    assert result.error is None
    outputs = [result.output_token_ids]
    assert outputs == greedy_beside_each(model, [prompt], outputs, 8)
    assert failing.failures == 2  # 512, 256; then 128 a step


def test_a_prompt_that_fits_in_no_chunk_fails_alone():
    engine = tiny_engine(draft="none", token_budget=512)
    opened(engine).replace_step(FailingStep, lambda schedule: prefill_tokens(schedule) > 20)
    bad, good = engine.generate([request("bad", [3] * 200, max_tokens=4), request("good", [3] * 9, max_tokens=4)])
    assert isinstance(bad.error, OutOfMemoryError)
    assert good.error is None


def test_a_shortage_of_prompt_tokens_preempts_nobody():
    engine = tiny_engine(draft="none", max_batch_size=4, token_budget=512)
    for i in range(3):
        engine.add_request(request(str(i), [3, 4, 5 + i], max_tokens=60, ignore_eos=True))
    engine.step()
    failing = opened(engine).replace_step(FailingStep, lambda schedule: prefill_tokens(schedule) > 100)
    engine.add_request(request("long", [3] * 150, max_tokens=4, ignore_eos=True))
    while engine.has_unfinished():
        assert all(result.error is None for result in engine.step())
    assert failing.failures == 1
    assert engine.counters().preemptions == 0


@pytest.mark.thorough
def test_a_batch_that_never_fits_is_tried_ever_less_often():
    engine = tiny_engine(draft="none", max_batch_size=8, num_blocks=4000)
    failing = opened(engine).replace_step(FailingStep, lambda schedule: schedule.num_sequences > 4)
    for i in range(8):
        engine.add_request(request(str(i), [3, 4, 5], max_tokens=230, ignore_eos=True))
    for _ in range(400):
        engine.step()
    assert failing.failures <= 4  # at the start, and after 16, 64 and 256 good steps


def test_a_limit_waits_longer_after_each_trial_that_fails_and_forgets_one_that_holds():
    limit = BackOff(32)

    def good_steps_until_raised():
        before, steps = limit.value, 0
        while limit.value == before:
            limit.passed()
            steps += 1
        return steps

    limit.lower(16)
    waits = []
    for _ in range(6):
        waits.append(good_steps_until_raised())
        limit.lower(16)
    assert waits == [16, 64, 256, 1024, 1024, 1024]
    good_steps_until_raised()
    for _ in range(5000):
        limit.passed()
    assert limit.value == 32
    limit.lower(16)
    assert good_steps_until_raised() == 16


def test_a_limit_stays_between_its_bounds():
    limit = BackOff(10, minimum=3)
    limit.lower(0)
    assert limit.value == 3
    for _ in range(100):
        limit.passed()
    assert limit.value == 10
    limit.lower(20)
    assert limit.value == 10


# Learning


def test_a_fault_in_learning_is_no_fault_of_the_step(monkeypatch, caplog):
    """The tokens are committed by then: what follows a commit, stop strings say, must not be left out."""
    model = tiny_model(seed=3)
    engine = tiny_engine(model, "same")
    monkeypatch.setattr(opened(engine).speculator, "learn", lambda *_: 1 / 0)
    prompt = prompts(1)[0]
    whole = reference_greedy(model, prompt, 20)
    stop = opened(engine).codec.decode(whole[3:5])
    (result,) = engine.generate([request("a", prompt, max_tokens=20, stop=(stop,))])
    assert result.error is None
    assert result.finish_reason is FinishReason.STOP
    assert stop not in result.output_text
    assert engine.counters().completion_tokens == result.completion_tokens
    assert caplog.text.count("learning from a step failed") == 1


def test_a_step_s_outcome_is_dealt_with_before_anything_is_learned_from_it(monkeypatch):
    """So that no failure there can make a committed step look failed, whatever it raises and wherever."""
    engine = tiny_engine(draft="same")
    learn, seen = opened(engine).speculator.learn, []

    def watched(*args):
        counters = engine.counters()
        emitted = sum(len(emission.token_ids) for emission in engine.emitted)
        seen.append((counters.steps, counters.completion_tokens, emitted))
        learn(*args)

    monkeypatch.setattr(opened(engine).speculator, "learn", watched)
    (result,) = engine.generate([request("a", [3, 4], max_tokens=12, ignore_eos=True)])
    assert [steps for steps, _, _ in seen] == list(range(1, engine.counters().steps + 1))
    totals = list(itertools.accumulate(emitted for _, _, emitted in seen))
    assert [tokens for _, tokens, _ in seen] == totals
    assert totals[-1] == result.completion_tokens


@pytest.mark.parametrize("part", ["observe_target", "observe_acceptance"])
def test_a_run_goes_on_without_what_its_learning_failed_on(monkeypatch, caplog, part):
    model = tiny_model(seed=3)
    texts = prompts(9)
    engine = Engine(
        loaded(model, "same"),
        EngineConfig(max_batch_size=4),
        CacheConfig(num_blocks=400, block_size=4),
        CostProfile(target=((1, 0.01), (512, 0.011)), draft=((1, 0.0001), (512, 0.0002))),
    )
    failures = []

    def fail(*_, **__):
        failures.append(part)
        raise MemoryError

    owner = opened(engine).costs if part == "observe_target" else opened(engine).controller
    monkeypatch.setattr(owner, part, fail)
    results = engine.generate(request(str(i), p, max_tokens=12) for i, p in enumerate(texts))
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, texts, outputs, 12)
    counters = engine.counters()
    assert counters.completion_tokens == sum(r.completion_tokens for r in results)
    assert counters.preemptions == 0
    assert counters.draft_tokens > 0
    assert len(failures) == 1
    assert caplog.text.count("learning from a step failed") == 1
    engine.check_integrity()


def test_a_fault_in_forgetting_loses_no_result(monkeypatch):
    engine = tiny_engine()
    monkeypatch.setattr(opened(engine).speculator, "forget", lambda _: 1 / 0)
    assert [r.completion_tokens for r in engine.generate([request("a", [3], max_tokens=4, ignore_eos=True)])] == [4]
