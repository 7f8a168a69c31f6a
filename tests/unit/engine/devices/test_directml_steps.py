"""A step on a device where waits are dear and shapes are compiled: one upload, one download, few shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention import groups
from helix_jobs.engine.attention.cache_geometry import BlockRows, CacheGeometry
from helix_jobs.engine.attention.groups import plan_groups
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import SpeculationConfig
from helix_jobs.engine.devices.shape_sizes import (
    largest_query_size,
    largest_row_size,
    padded_rows,
    query_size,
    row_size,
    token_size,
)
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from tests.unit.engine.devices.placed_models import draft_of, engine_of, loaded_on_device, loaded_on_host
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import request, tiny_model

if TYPE_CHECKING:
    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.request import GenerationResult, Request
    from tests.unit.engine.devices.simulated_directml import SimulatedDirectml

GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 0.9}
PENALISED = {"repetition_penalty": 1.3}
MIXED = [GREEDY, SAMPLED, GREEDY, PENALISED]
LOGPROBS = {"logprobs": 3}
SCORED = {"prompt_logprobs": 2, "temperature": 0.9}
TELLING = [LOGPROBS, GREEDY, SCORED, SAMPLED]
VERIFY = SpeculativeStep._verify_on_host


def drafting_engine(*, draft: bool = True, depth: int = 3, lookup: bool = False, num_blocks: int = 80) -> Engine:
    target = loaded_on_device("target", tiny_model(seed=3), torch.float32)
    model = loaded_on_device("draft", draft_of(tiny_model(seed=3)), torch.float32) if draft else None
    return engine_of(
        target,
        model,
        SpeculationConfig(depth=depth, adaptive=False, drafters=("lookup",) if lookup else ()),
        num_blocks=num_blocks,
    )


def jobs(params: list[dict[str, Any]]) -> list[Request]:
    return [
        request(str(i), [3 + i, 4] * (2 + 4 * i), seed=i, max_tokens=12, ignore_eos=True, **extra)
        for i, extra in enumerate(params)
    ]


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("params", [[GREEDY] * 4, [SAMPLED] * 4, [PENALISED] * 4, MIXED, TELLING])
@pytest.mark.parametrize(
    ("depth", "draft", "lookup"), [(0, False, False), (3, True, False), (3, False, True), (3, True, True)]
)
def test_a_step_uploads_and_downloads_once(
    device: SimulatedDirectml, params: list[dict[str, Any]], depth: int, *, draft: bool, lookup: bool
) -> None:
    engine = drafting_engine(draft=draft, depth=depth, lookup=lookup)
    engine.generate([request("first", [3, 4], max_tokens=3)])  # the rotary tables are brought to the device
    for one in jobs(params):
        engine.add_request(one)
    both = 0
    while engine.has_unfinished():
        kinds = {sequence.num_prefill_tokens > 0 for sequence in opened(engine).scheduler.running}
        both += len(kinds) > 1
        before = device.uploads, device.downloads
        engine.step()
        assert device.uploads - before[0] <= 1
        assert device.downloads - before[1] <= 1
    assert both > 0, "prompts were computed beside decodes"
    assert (engine.counters().draft_tokens > 0) == (depth > 0)
    engine.check_integrity()


def test_a_step_that_yields_no_token_does_not_wait(device: SimulatedDirectml) -> None:
    engine = drafting_engine()
    engine.generate([request("first", [3, 4], max_tokens=3)])
    engine.add_request(request("long", [5] * 30, max_tokens=3))
    before = device.uploads, device.downloads
    engine.step()
    assert (device.uploads - before[0], device.downloads - before[1]) == (1, 0)
    (sequence,) = opened(engine).scheduler.running
    assert sequence.num_draft_computed == sequence.num_computed == 12


def test_rows_of_greedy_sequences_stay_on_the_device(
    device: SimulatedDirectml, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = drafting_engine(draft=False, depth=0)
    seen = []
    monkeypatch.setattr(
        SpeculativeStep,
        "_verify_on_host",
        lambda step, turns, host, probs: seen.append(len(host)) or VERIFY(step, turns, host, probs),
    )
    sampled = [request("s", [5], seed=1, max_tokens=9, ignore_eos=True, temperature=1.0)]
    greedy = [request(str(i), [3 + i], max_tokens=9, ignore_eos=True) for i in range(5)]
    engine.generate(greedy + sampled)
    assert set(seen) == {1}


# Recovery


def outputs(results: list[GenerationResult]) -> list[tuple[int, ...]]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.output_token_ids for result in results]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("where", ["first draft pass", "last draft pass", "target", "download"])
def test_a_step_that_fails_in_the_middle_is_repeated(
    device: SimulatedDirectml, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Prompts share blocks, which the draft model fills for all of them, or for none if it fails."""
    shared = [5, 9, 2, 30, 8, 8, 17, 3]
    asked = [
        request(str(i), [*shared, 10 + i], seed=i, max_tokens=14, ignore_eos=True, **extra)
        for i, extra in enumerate([GREEDY, PENALISED, GREEDY, SAMPLED])
    ]
    expected = outputs(drafting_engine().generate(asked))
    engine = drafting_engine()
    calls = {"draft": 0, "target": 0, "download": 0}
    failures = []

    def failing(kind: str, call: Any, is_due: Any) -> Any:
        def run(*args: Any) -> Any:
            calls[kind] += 1
            if is_due(calls[kind]):
                marks = [s.num_draft_computed for s in opened(engine).scheduler.running]
                failures.append(all(m < len(s) for m, s in zip(marks, opened(engine).scheduler.running, strict=True)))
                raise RuntimeError("Could not allocate tensor with 99 bytes")
            return call(*args)

        return run

    due = {
        "first draft pass": ("draft", lambda n: n in (7, 31)),
        "last draft pass": ("draft", lambda n: n in (9, 30)),
        "target": ("target", lambda n: n in (4, 9)),
        "download": ("download", lambda n: n in (3, 8)),
    }
    kind, is_due = due[where]
    owner, name = {
        "draft": (opened(engine).draft, "run"),
        "target": (opened(engine).target, "run"),
        "download": (opened(engine).target_pass, "download"),
    }[kind]
    monkeypatch.setattr(owner, name, failing(kind, getattr(owner, name), is_due))
    assert outputs(engine.generate(asked)) == expected
    assert failures == [True, True], "a step that failed marked nothing"
    engine.check_integrity()
    assert opened(engine).is_empty


def test_greedy_and_penalised_outputs_are_those_of_the_ordinary_path(device: SimulatedDirectml) -> None:
    speculation = SpeculationConfig(depth=3, adaptive=False)
    asked = jobs([GREEDY, PENALISED, GREEDY, PENALISED])
    with device.left():
        model = tiny_model(seed=3)
        host = engine_of(
            loaded_on_host("target", model, torch.float32),
            loaded_on_host("draft", draft_of(model), torch.float32),
            speculation,
            num_blocks=80,
        )
        expected = outputs(host.generate(asked))
    engine = drafting_engine()
    assert outputs(engine.generate(asked)) == expected
    assert 0 < engine.counters().accepted_tokens < engine.counters().draft_tokens


# Shapes


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("depth", "share", "params"),
    [
        pytest.param(0, 0.01, [GREEDY] * 5, id="plain-greedy"),
        pytest.param(3, 0.15, [*MIXED, GREEDY], id="drafted-mixed"),
        pytest.param(0, 0.01, [*MIXED, GREEDY], id="plain-mixed", marks=pytest.mark.slow),
        pytest.param(3, 0.15, [GREEDY] * 5, id="drafted-greedy", marks=pytest.mark.slow),
    ],
)
def test_shapes_repeat(device: SimulatedDirectml, depth: int, share: float, params: list[dict[str, Any]]) -> None:
    """Each shape is compiled once: as sequences grow, and drafts are accepted or not, few new ones come."""
    engine = drafting_engine(draft=depth > 0, depth=depth, num_blocks=200)

    def new_shapes(length: int) -> int:
        """Of steps that only decode."""
        for i, extra in enumerate(params):
            prompt = [3 + i] * (length + i)
            engine.add_request(request(str(i), prompt, seed=i, max_tokens=20, ignore_eos=True, **extra))
        count = 0
        while engine.has_unfinished():
            scheduler, before = opened(engine).scheduler, len(device.shapes)
            only_decodes = not scheduler.waiting and not any(s.num_prefill_tokens for s in scheduler.active)
            engine.step()
            count += only_decodes * (len(device.shapes) - before)
        return count

    first = new_shapes(2) + new_shapes(34)
    # From 34 to 64 tokens a sequence has 9 to 16 blocks of 4, which count as 16.
    assert sum(new_shapes(length) for length in (36, 38, 40)) <= share * first


def test_sizes_are_few_and_none_is_padded_twice() -> None:
    for size in (row_size, token_size, query_size):
        assert all(count <= size(count) == size(size(count)) for count in range(1, 2000))
        assert len({size(count) for count in range(1, 1025)}) <= 37
    assert all(padded_rows(token_size(count)) == token_size(count) for count in range(1, 3000))
    for size, largest in ((row_size, largest_row_size), (query_size, largest_query_size)):
        sizes = sorted({size(count) for count in range(1, 3000)})
        for limit in range(1, 1000):
            assert largest(limit) == max(one for one in sizes if one <= limit)


@pytest.mark.parametrize("most", [3000, 20_000, 1 << 24])
def test_padding_leaves_groups_as_small_as_memory_allows(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(groups, "MAX_GROUP_SCORES", most)
    monkeypatch.setattr(groups, "MAX_GATHERED_ELEMENTS", most)
    heads = 6
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=2, head_dim=8)
    lengths = [(1 + 7 * i % 40, 13 * i) for i in range(40)] + [(300, 0)]
    slices = [TokenSlice(new, start, range(200)) for new, start in lengths]
    plan = plan_groups(slices, geometry, 4, num_heads=heads, block_rows=(BlockRows(2, 2),), spare_block=200)
    for group in plan.attention.groups:
        if group.num_rows > 1:
            assert group.num_rows * geometry.widest * group.num_keys <= most
        if group.num_rows * group.num_queries > 1:
            assert group.num_rows * group.num_queries * heads * group.num_keys <= most
