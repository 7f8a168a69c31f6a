"""Sections that compare answers: with the CPU, with transformers, with themselves in other company, after failures."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from device_models import engine_of, loaded, make, outputs, prompts, reference, requests, separate

from helix_jobs.engine.config import SpeculationConfig
from helix_jobs.engine.operator_checks import OperatorStatus, operator_checks, run_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from section import Check, Report

OFF = SpeculationConfig(depth=0)
FIXED = SpeculationConfig(depth=4, adaptive=False)
# Steps of a dtype at 1.0: a difference from transformers begins at no wider gap than two of them.
_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def operators(check: Check, report: Report) -> None:
    dtypes = [torch.float32, torch.float16]
    if check.device.type != "privateuseone":
        dtypes.append(torch.bfloat16)
    wrong, slow, count = [], [], 0
    for dtype in dtypes:
        for one in operator_checks(check.device.type):
            verdict = run_check(one, check.device, dtype)
            count += 1
            if verdict.status is OperatorStatus.FALLS_BACK:
                slow.append(f"{verdict.operator}/{verdict.dtype}")
            elif verdict.status is not OperatorStatus.OK:
                wrong.append(f"{verdict.operator} in {verdict.dtype} {verdict.status}: {verdict.detail}")
    report.figures |= {"checks": count, "computed_on_the_cpu": slow}
    report.failures += wrong


def exact_float32(check: Check, report: Report) -> None:
    """Greedy outputs in float32 are transformers' own, drafts or not."""
    torch.backends.cuda.matmul.allow_tf32 = False
    shape, num_tokens = separate(check.shapes.one), 8 if check.tiny else 32
    texts = prompts(4 if check.tiny else 16, 60 if check.tiny else 300, shape.vocab)
    expected = [tokens for tokens, _ in reference(make(shape, torch.float32, check.device), texts, num_tokens)]
    report.figures["distinct_tokens"] = len({token for tokens in expected for token in tokens})
    report.expect(
        "the outputs go in circles: they would be equal by chance", holds=report.figures["distinct_tokens"] > 8
    )
    target = loaded("target", make(shape, torch.float32, check.device))
    draft = loaded("draft", make(shape, torch.float32, check.device, noise=0.04))
    modes = (
        ("off", None, OFF),
        ("fixed", draft, FIXED),
        ("lookup", None, SpeculationConfig(lookup=True)),
    )
    for name, drafting, speculation in modes:
        engine = engine_of(target, drafting, speculation)
        results = engine.generate(requests(texts, num_tokens))
        equal = sum(one == other for one, other in zip(outputs(results), expected, strict=True))
        report.figures[name] = f"{equal}/{len(texts)}"
        report.expect(f"{name}: {equal} of {len(texts)} outputs are transformers'", holds=equal == len(texts))
        if drafting is not None:
            drafted = sum(result.draft_tokens for result in results)
            share = sum(result.accepted_tokens for result in results) / max(1, drafted)
            report.figures["accepted"] = round(share, 3)
            report.expect(f"{share:.0%} of the draft is accepted: nothing is tried", holds=0 < share < 1)
        engine.close()


def exact_half(check: Check, report: Report) -> None:
    """In bfloat16 and float16: equal, or different from a near-tie on; and with itself always equal."""
    shape, num_tokens = separate(check.shapes.one), 8 if check.tiny else 32
    texts = prompts(4 if check.tiny else 16, 60 if check.tiny else 300, shape.vocab)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        expected = reference(make(shape, dtype, check.device), texts, num_tokens)
        target = loaded("target", make(shape, dtype, check.device))
        draft = loaded("draft", make(shape, dtype, check.device, noise=0.04))
        together = outputs(engine_of(target, None, OFF).generate(requests(texts, num_tokens)))
        drafted = outputs(engine_of(target, draft, FIXED).generate(requests(texts, num_tokens)))
        alone = outputs(engine_of(target, None, OFF, max_batch_size=1).generate(requests(texts, num_tokens)))
        equal, widest = 0, 0.0
        for got, (tokens, gaps) in zip(together, expected, strict=True):
            first = next((i for i, pair in enumerate(zip(got, tokens, strict=True)) if pair[0] != pair[1]), None)
            equal += first is None
            widest = max(widest, 0.0 if first is None else gaps[first])
        report.figures |= {
            f"{name}_transformers": f"{equal}/{len(texts)}",
            f"{name}_widest_gap": f"{widest:.2g}",
            f"{name}_with_drafts": f"{_equal(together, drafted)}/{len(texts)}",
            f"{name}_alone": f"{_equal(together, alone)}/{len(texts)}",
        }
        report.expect(
            f"{name}: an output leaves transformers' where the two best are {widest:.2g} apart, no near-tie",
            holds=widest <= 4 * _STEP[dtype],
        )


def sampled(check: Check, report: Report) -> None:
    """Seeded jobs have the same output in any company."""
    shape, num_tokens = separate(check.shapes.one), 8 if check.tiny else 32
    target = loaded("target", make(shape, torch.float32, check.device))
    params: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.05},
        {"repetition_penalty": 1.2},
        {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    ]
    texts = prompts(len(params), 40, shape.vocab)
    lines = [requests([text], num_tokens, f"{i}-", **extra)[0] for i, (text, extra) in enumerate(zip(texts, params))]  # noqa: B905
    alone = [outputs(engine_of(target, None, OFF).generate([line]))[0] for line in lines]
    others = requests(prompts(6 if check.tiny else 24, 90, shape.vocab, seed=8), num_tokens, "other-")
    company = outputs(engine_of(target, None, OFF).generate([*others, *lines]))[-len(lines) :]
    same = _equal(alone, company)
    report.figures["same"] = f"{same}/{len(lines)}"
    report.expect(f"{same} of {len(lines)} seeded outputs are the same in company", holds=same == len(lines))


def shortage(check: Check, report: Report) -> None:
    """Out of memory, a prompt that can never fit, and one kernel error: the others finish, with the same outputs."""
    shape, num_tokens = separate(check.shapes.one), 8 if check.tiny else 32
    target = loaded("target", make(shape, torch.float32, check.device))
    count = 8 if check.tiny else 32
    texts = prompts(count, 40 if check.tiny else 400, shape.vocab)
    expected = outputs(engine_of(target, None, OFF).generate(requests(texts, num_tokens)))
    before = torch.cuda.memory_allocated(check.device) if check.on_cuda else 0
    for name, limit in (("memory", _little_memory(check, count)), ("kernel", _one_fault())):
        engine = engine_of(target, None, OFF, max_batch_size=count)
        with limit as state:
            results = engine.generate(requests(texts, num_tokens))
        failed = [result.error.code for result in results if result.error is not None]
        equal = _equal(outputs(results), expected)
        report.figures[name] = f"{equal}/{count} faults={state['faults']} failed={failed}"
        report.expect(f"{name}: {equal} of {count} outputs are as without", holds=equal == count)
        report.expect(f"{name}: nothing failed on the way, so nothing was tried", holds=state["faults"] > 0)
        engine.close()
    engine = engine_of(target, None, OFF, num_blocks=8)
    results = engine.generate(requests([texts[0][:5], [5] * 400], 4))
    codes = [result.error.code if result.error else "" for result in results]
    report.figures["too_long"] = codes
    report.expect(f"of a short and an endless prompt: {codes}", holds=codes == ["", "out_of_memory"])
    engine.close()
    if check.on_cuda:
        del engine
        torch.cuda.synchronize(check.device)
        grown = torch.cuda.memory_allocated(check.device) / before
        report.figures["allocated_after"] = f"{grown:.3f}"
        report.expect(f"{grown:.3f} times the memory is allocated afterwards", holds=grown < 1.01)


@contextlib.contextmanager
def _patched_bmm(fault: Any) -> Iterator[dict[str, int]]:
    state, real = {"faults": 0, "calls": 0}, torch.bmm

    def bmm(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        state["calls"] += 1
        error = fault(first, state)
        if error is not None:
            state["faults"] += 1
            raise error
        return real(first, second)

    torch.bmm = bmm
    try:
        yield state
    finally:
        torch.bmm = real


def _one_fault() -> contextlib.AbstractContextManager[dict[str, int]]:
    return _patched_bmm(lambda _, state: RuntimeError("a made-up kernel fault") if state["calls"] == 20 else None)


@contextlib.contextmanager
def _little_memory(check: Check, count: int) -> Iterator[dict[str, int]]:
    """On CUDA the allocator's own limit; elsewhere products of many rows fail as if memory ran out."""
    heads = check.shapes.one.kv_heads * count // 4
    error = torch.OutOfMemoryError("out of memory, made up")
    if not check.on_cuda:
        with _patched_bmm(lambda first, _: error if first.shape[0] > heads else None) as state:
            yield state
        return
    total = torch.cuda.get_device_properties(check.device).total_memory
    torch.cuda.empty_cache()
    state = {"faults": 0}
    # The engine's cache is allocated by now; what is left holds a step of a few sequences.
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (torch.cuda.memory_reserved(check.device) + (64 << 20)) / total), check.device
    )
    try:
        with _patched_bmm(lambda first, _: error if first.shape[0] > heads else None) as made_up:
            yield state
        state["faults"] = made_up["faults"] + torch.cuda.memory_stats(check.device).get("num_ooms", 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, check.device)


def _equal(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> int:
    return sum(one == other for one, other in zip(some, others, strict=True))
