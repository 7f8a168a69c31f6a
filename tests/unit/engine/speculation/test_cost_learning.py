"""What a step costs is learned from time in which the device has worked, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helix_jobs.engine.config import CacheConfig, SpeculationConfig
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.speculation import speculative
from helix_jobs.engine.speculation.depth import profile as cost_profile
from helix_jobs.engine.speculation.depth.costs import CostProfile
from helix_jobs.engine.speculation.depth.profile import measure_costs
from helix_jobs.engine.speculation.drafters import draft_model
from tests.unit.engine.devices.placed_models import engine_of, loaded_on_device
from tests.unit.engine.devices.simulated_directml import SimulatedDirectml
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import request, tiny_model

LAUNCH = 1e-5
TOKEN = 1e-3
FLAT = 128
CACHE = CacheConfig(num_blocks=100, block_size=16)


class Clock:
    """Stands in for the module ``time``: it moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        self.now = 0.0
        self.queued = 0.0
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Asynchronous(SimulatedDirectml):
    """A device on which time passes in downloads only, when it works off what was queued."""

    clock: Clock
    wait = 0.0

    def __torch_dispatch__(self, *call: Any) -> Any:
        before = self.downloads
        result = super().__torch_dispatch__(*call)
        if self.downloads > before:
            self.clock.now += self.clock.queued + self.wait
            self.clock.queued = 0.0
        return result


def queueing(runner: ModelRunner, clock: Clock, seconds: float) -> None:
    """Let each forward only start, and take so long a token, as long as ``FLAT`` of them at least."""
    run = runner.run

    def start(*args: Any) -> Any:
        clock.now += LAUNCH
        clock.queued += seconds * max(FLAT, args[0].layout.num_tokens)
        return run(*args)

    runner.run = start  # type: ignore[method-assign]


def profile_of(draft_share: float) -> CostProfile:
    """What ``queueing`` makes steps take, with a draft that costs so much of its target."""
    points = ((1, FLAT * TOKEN), (FLAT, FLAT * TOKEN), (512, 512 * TOKEN))
    return CostProfile(target=points, draft=tuple((tokens, seconds * draft_share) for tokens, seconds in points))


def test_draft_passes_are_measured_without_a_wait_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, cost_profile)
    with Asynchronous() as device:
        device.clock, device.wait = clock, 1.0
        target, draft = (
            ModelRunner(loaded_on_device(name, tiny_model(seed=3), torch.float32).decoder, CACHE)
            for name in ("target", "draft")
        )
        queueing(target, clock, TOKEN)
        queueing(draft, clock, TOKEN / 50)
        profile = measure_costs(target, draft, max_batch_size=2, max_depth=1)
    assert dict(profile.target)[1] == pytest.approx(1.0 + FLAT * TOKEN, rel=0.01)
    assert dict(profile.draft)[1] == pytest.approx(1.0 / 4 + FLAT * TOKEN / 50, rel=0.01)


@pytest.mark.thorough
def test_steps_that_only_start_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, speculative, draft_model)
    true = profile_of(1 / 50)
    with Asynchronous() as device:
        device.clock = clock
        target, draft = (loaded_on_device(name, tiny_model(seed=3), torch.float32) for name in ("target", "draft"))
        engine = engine_of(target, draft, SpeculationConfig(), num_blocks=400, costs=true)
        queueing(opened(engine).target, clock, TOKEN)
        queueing(opened(engine).draft, clock, TOKEN / 50)
        prompts = [[3 + i % 20 for i in range(start, start + 150)] for start in range(8)]
        results = engine.generate([request(str(i), p, max_tokens=12, ignore_eos=True) for i, p in enumerate(prompts)])
    assert sum(result.draft_tokens for result in results) > 20
    learned = engine.cost_profile()
    assert learned is not None
    for known, expected in ((learned.target, true.target), (learned.draft, true.draft)):
        for tokens, seconds in expected:
            assert dict(known)[tokens] == pytest.approx(seconds, rel=0.1)


def test_a_cold_start_is_not_what_steps_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, cost_profile)
    runner = ModelRunner(build_decoder(tiny_model(seed=3)), CACHE)
    run, seen = runner.run, set[int]()

    def run_that_loads(*args: Any) -> Any:
        num_tokens = args[0].layout.num_tokens
        clock.now += TOKEN if num_tokens in seen else 2.0
        seen.add(num_tokens)
        return run(*args)

    runner.run = run_that_loads  # type: ignore[method-assign]
    profile = measure_costs(runner, None, max_batch_size=8, max_depth=3)
    assert len(profile.target) > 5
    assert all(seconds == pytest.approx(TOKEN) for _, seconds in profile.target[:6])


def test_a_machine_that_is_slow_indeed_is_not_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, cost_profile)
    runner = ModelRunner(build_decoder(tiny_model(seed=3)), CACHE)
    run, passes = runner.run, []

    def slow(*args: Any) -> Any:
        clock.now += 2.0
        passes.append(args[0].layout.num_tokens)
        return run(*args)

    runner.run = slow  # type: ignore[method-assign]
    assert measure_costs(runner, None, max_batch_size=8, max_depth=3).target == ((1, 2.0),)
    assert passes == [1, 1]
