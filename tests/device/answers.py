"""Sections that compare answers: with the CPU, with transformers, with themselves in other company."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.config import SpeculationConfig
from helix_jobs.engine.devices.operator_checks import OperatorStatus, operator_checks, run_check
from tests.device.device_models import engine_of, loaded, make, outputs, prompts, reference, requests, separate

if TYPE_CHECKING:
    from helix_jobs.engine.loaded_models import LoadedModel
    from helix_jobs.engine.request import Request
    from tests.device.device_models import Shape
    from tests.device.section import Check, Report

OFF = SpeculationConfig(depth=0)
FIXED = SpeculationConfig(depth=4, adaptive=False)
# By dtype, two units in the last place, of the best logit: two programs that are each off by one may put two logits
# that are so far apart into another order. A difference from transformers begins at no wider gap.
_NEAR = {torch.bfloat16: 2 * 2**-7, torch.float16: 2 * 2**-10}
# Distinct tokens of all outputs together; with fewer they go in circles, and would be equal by chance.
_FEWEST_DISTINCT, _FEWEST_DISTINCT_TINY = 50, 8


def operators(check: Check, report: Report) -> None:
    """Each operator that the engine needs, against the CPU's."""
    wrong, slow, count = [], [], 0
    for dtype in (torch.float32, *_halves(check, report)):
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
    # Target and draft, and a cache for each.
    shape, num_tokens = chosen_shape(check, report, 12), 8 if check.tiny else 32
    texts = prompts(4 if check.tiny else 16, 60 if check.tiny else 300, shape.vocab)
    expected = [tokens for tokens, _ in reference(make(shape, torch.float32, check.device), texts, num_tokens)]
    report.figures["distinct_tokens"] = len({token for tokens in expected for token in tokens})
    fewest = _FEWEST_DISTINCT_TINY if check.tiny else _FEWEST_DISTINCT
    distinct = report.figures["distinct_tokens"]
    report.expect(
        f"the outputs go in circles ({distinct} distinct tokens): they would be equal by chance",
        holds=distinct > fewest,
    )
    target = loaded("target", make(shape, torch.float32, check.device))
    draft = loaded("draft", make(shape, torch.float32, check.device, noise=0.04))
    modes = (
        ("off", None, OFF),
        ("fixed", draft, FIXED),
        ("lookup", None, SpeculationConfig(drafters=("lookup",))),
    )
    for name, drafting, speculation in modes:
        engine = engine_of(target, drafting, speculation)
        results = engine.generate(requests(texts, num_tokens))
        same = equal(outputs(results), expected)
        report.figures[name] = f"{same}/{len(texts)}"
        report.expect(f"{name}: {same} of {len(texts)} outputs are transformers'", holds=same == len(texts))
        if drafting is not None:
            drafted = sum(result.draft_tokens for result in results)
            share = sum(result.accepted_tokens for result in results) / max(1, drafted)
            report.figures["accepted"] = round(share, 3)
            report.expect(f"{share:.0%} of the draft is accepted: little is tried", holds=0.05 < share < 0.95)
        engine.close()


def exact_half(check: Check, report: Report) -> None:
    """In bfloat16 and float16: transformers' outputs, or others from a near-tie on; and its own in other company."""
    shape, num_tokens = chosen_shape(check, report, 7), 8 if check.tiny else 32
    texts = prompts(4 if check.tiny else 16, 60 if check.tiny else 300, shape.vocab)
    for dtype in _halves(check, report):
        name = str(dtype).removeprefix("torch.")
        expected = reference(make(shape, dtype, check.device), texts, num_tokens)
        target = loaded("target", make(shape, dtype, check.device))
        draft = loaded("draft", make(shape, dtype, check.device, noise=0.04))
        together = engine_of(target, None, OFF)
        found = outputs(together.generate(requests(texts, num_tokens)))
        drafted = outputs(engine_of(target, draft, FIXED).generate(requests(texts, num_tokens)))
        alone = outputs(engine_of(target, None, OFF, max_batch_size=1).generate(requests(texts, num_tokens)))
        widest = 0.0
        for got, (tokens, gaps) in zip(found, expected, strict=True):
            first = next((i for i, pair in enumerate(zip(got, tokens, strict=True)) if pair[0] != pair[1]), None)
            widest = max(widest, 0.0 if first is None else gaps[first])
        same = equal(found, [tokens for tokens, _ in expected])
        report.figures |= {f"{name}_transformers": f"{same}/{len(texts)}", f"{name}_widest_gap": f"{widest:.2g}"}
        report.expect(
            f"{name}: an output leaves transformers' where the two best are {widest:.2g} apart, no near-tie",
            holds=widest <= _NEAR[dtype],
        )
        promised = together.info.is_reproducible
        compare_with_itself(report, f"{name}_with_drafts", equal(found, drafted), len(texts), promised=promised)
        compare_with_itself(report, f"{name}_alone", equal(found, alone), len(texts), promised=promised)


def compare_with_itself(report: Report, name: str, same: int, count: int, *, promised: bool) -> None:
    """Outputs of one engine in two companies: a verdict where it promises that they are equal, a figure elsewhere."""
    report.figures[name] = f"{same}/{count}"
    if promised:
        report.expect(
            f"{name}: {same} of {count} outputs are the same, and all are promised to be", holds=same == count
        )
    elif "itself" not in report.figures:
        report.figures["itself"] = "not promised here"


def sampled(check: Check, report: Report) -> None:
    """Seeded jobs have the same output in any company."""
    shape, num_tokens = chosen_shape(check, report, 7), 8 if check.tiny else 32
    target = loaded("target", make(shape, torch.float32, check.device))
    params: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.05},
        {"repetition_penalty": 1.2},
        {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
        {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.1},
    ]
    texts = prompts(len(params), 40, shape.vocab)
    lines = [requests([text], num_tokens, f"{i}-", **extra)[0] for i, (text, extra) in enumerate(zip(texts, params))]  # noqa: B905
    alone = [outputs(engine_of(target, None, OFF).generate([line]))[0] for line in lines]
    others = requests(prompts(6 if check.tiny else 24, 90, shape.vocab, seed=8), num_tokens, "other-")
    company = outputs(engine_of(target, None, OFF).generate([*others, *lines]))[-len(lines) :]
    same = equal(alone, company)
    report.figures["same"] = f"{same}/{len(lines)}"
    report.expect(f"{same} of {len(lines)} seeded outputs are the same in company", holds=same == len(lines))
    batch = prompts(4 if check.tiny else 32, 40, shape.vocab)
    greedy, drawn = (_deciding(target, requests(batch, num_tokens, **params)) for params in ({}, {"temperature": 0.8}))
    report.figures[f"ms_a_step_of_sampling_B={len(batch)}"] = round(1e3 * (drawn - greedy), 2)


def _deciding(target: LoadedModel, batch: list[Request]) -> float:
    """Seconds a step that the engine takes to choose tokens once their logits are there."""
    engine = engine_of(target, None, OFF)
    engine.generate(batch)
    counters = engine.counters()
    return counters.verify_seconds / counters.steps


def equal(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> int:
    return sum(one == other for one, other in zip(some, others, strict=True))


def chosen_shape(check: Check, report: Report, bytes_each: float) -> Shape:
    """The model that the answers come from, with a head of its own."""
    return check.fitting(report, bytes_each, separate(check.shapes.one), separate(check.shapes.small))


def _halves(check: Check, report: Report) -> list[torch.dtype]:
    """The dtypes of 16 bits that the device has."""
    if check.device.type == "privateuseone":
        report.leave_out("bfloat16", "DirectML has none")
        return [torch.float16]
    return [torch.bfloat16, torch.float16]
