"""Sections that measure: the device's ceilings, memory, steps, launches, prompts, a draft model's passes."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from device_models import MAX_CONTEXT, loaded, make, release

from helix_jobs.engine.cache_size import choose_cache
from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.cost_profile import measure_costs
from helix_jobs.engine.decoder.families import build_decoder
from helix_jobs.engine.decoder.placement import Placement
from helix_jobs.engine.depth_plan import accepted_tokens
from helix_jobs.engine.devices import describe_device, free_memory
from helix_jobs.engine.model_runner import ModelRunner
from helix_jobs.engine.step_layout import TokenSlice
from helix_jobs.engine.step_memory import step_bytes

if TYPE_CHECKING:
    from device_models import Shape
    from section import Check, Report

    from helix_jobs.engine.decoder.decoder import Decoder

_BLOCK = 16
_WARM, _STEPS = 10, 30


def environment(check: Check, report: Report) -> None:
    """What the rest is held against: bytes and operations a second."""
    report.figures |= {"device": describe_device(check.device), "torch": torch.__version__}
    if check.on_cuda:
        try:
            query = subprocess.run(
                ("nvidia-smi", "-q", "-d", "CLOCK,MEMORY"), capture_output=True, text=True, timeout=10, check=False
            )
            report.figures["_nvidia_smi"] = query.stdout[:6000]
        except (OSError, subprocess.SubprocessError) as error:
            report.figures["_nvidia_smi"] = str(error)
    size = (1 << 24) if check.tiny or not check.on_cuda else (1 << 32)
    source = torch.zeros(size, dtype=torch.float16, device=check.device).view(-1)[: size // 2]
    target = torch.empty_like(source)
    check.bandwidth = 2 * source.nbytes / _seconds(check, lambda: target.copy_(source))
    side = 256 if check.tiny or not check.on_cuda else 8192
    dtype = _half(check)
    matrix = torch.zeros((side, side), dtype=dtype, device=check.device)
    check.flops = 2 * side**3 / _seconds(check, lambda: matrix @ matrix)
    report.figures |= {"TB/s": round(check.bandwidth / 1e12, 3), "TFLOP/s": round(check.flops / 1e12, 2)}


def memory(check: Check, report: Report) -> None:
    """Loading leaves no holes, the cache takes what is left, long prompts fit beside it."""
    shape, dtype = check.shapes.large, _half(check)
    free = free_memory(check.device)
    placement = Placement(dtype=dtype, device=check.device)
    decoder = build_decoder(make(shape, dtype, torch.device("cpu"), values=False), placement)
    decoder.pack()
    release(check.device)
    config = EngineConfig()
    left = free_memory(check.device)
    block_bytes = decoder.geometry.block_bytes(_BLOCK, dtype)
    largest = step_bytes(decoder, config, MAX_CONTEXT)
    cache = choose_cache(
        block_bytes=block_bytes,
        kv_cache_mb=None if check.on_cuda else 16,
        free_bytes=left,
        on_host=not check.on_cuda,
        max_batch_size=config.max_batch_size,
        max_model_len=MAX_CONTEXT,
        depth=config.speculation.ceiling,
        step_bytes=largest,
    )
    report.figures |= {
        "weights_GB": _giga(_weights(decoder)),
        "free_before_GB": _giga(free or 0),
        "free_after_GB": _giga(left or 0),
        "cache_GB": _giga(cache.num_blocks * block_bytes),
        "step_GB": _giga(largest),
    }
    if check.on_cuda:
        allocated, reserved = torch.cuda.memory_allocated(check.device), torch.cuda.memory_reserved(check.device)
        report.figures |= {"allocated_GB": _giga(allocated), "reserved_GB": _giga(reserved)}
        report.expect(
            f"{reserved / allocated:.2f} bytes are reserved for each allocated", holds=reserved <= 1.05 * allocated
        )
        wanted = 0.8 * ((free or 0) - _weights(decoder))
        taken = cache.num_blocks * block_bytes
        most = config.max_batch_size * (MAX_CONTEXT // _BLOCK + 1) * block_bytes
        report.expect(f"the cache takes {taken / wanted:.2f} of what it should", holds=taken >= 0.9 * min(wanted, most))
    # As much cache as the longest prompt below needs.
    keys = (256, 1024) if check.tiny else (4096, 16384, 32768, 131072 - 1024)
    runner = ModelRunner(decoder, CacheConfig(num_blocks=(keys[-1] + 1024) // _BLOCK, block_size=_BLOCK))
    peaks = {}
    for count in keys:
        before = _allocated(check, reset=True)
        _pass(check, runner, [(1024, count)])
        peaks[count] = round((_peak(check) - before) / 1e9, 3)
    report.figures["chunk_peak_GB"] = peaks
    report.expect(f"a chunk takes {max(peaks.values())} GB", holds=max(peaks.values()) * 1e9 <= largest)


def decode(check: Check, report: Report) -> None:
    """Plain steps, by model, batch and context."""
    cells: list[tuple[Shape, int, int]] = []
    for shape in (check.shapes.small, check.shapes.one, check.shapes.large):
        for batch in (1, 2) if check.tiny else (1, 8, 32, 128, 256):
            for context in (64,) if check.tiny else (256, 1024):
                short = shape is check.shapes.large and batch == 256
                cells.append((shape, batch, 512 if short and context > 512 else context))
    runner, known = None, ""
    for shape, batch, context in cells:
        if shape.name != known or runner is None:
            runner = None
            release(check.device)
            runner, known = _runner(check, shape, 40 if check.tiny else 256 * 1040 // _BLOCK), shape.name
        step = _time_step(check, runner, [(1, context)] * batch)
        floor = _floor(check, runner, batch * context)
        report.figures[f"{shape.name} B={batch} c={context}"] = step.text(batch, floor)
        report.rows.append((f"{shape.name} B={batch} context={context}", step.seconds * 1e3, floor * 1e3))
    assert runner is not None, "there are cells"
    mixed = [(1 + i % 9, 64 + (i * 61) % (192 if check.tiny else 1984)) for i in range(4 if check.tiny else 32)]
    step = _time_step(check, runner, mixed)
    floor = _floor(check, runner, sum(context for _, context in mixed))
    report.figures["mixed"] = step.text(len(mixed), floor)
    report.rows.append((f"{known} B={len(mixed)} mixed depths and lengths", step.seconds * 1e3, floor * 1e3))


def counts(check: Check, report: Report) -> None:
    """Launches and waits of one step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if check.on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name, shape, slices in (
        ("large B=1", check.shapes.large, [(1, 64)]),
        ("large B=32 mixed", check.shapes.large, [(1 + i % 9, 64 + i * 16) for i in range(4 if check.tiny else 32)]),
        ("draft B=1", check.shapes.draft, [(1, 64)]),
    ):
        runner = _runner(check, shape, 1600 if check.on_cuda else 100)
        _pass(check, runner, slices)
        with torch.profiler.profile(activities=activities) as profile:
            _pass(check, runner, slices)
        events = {event.key: event for event in profile.key_averages()}
        shown = {
            key: events[key].count
            for key in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaMemcpyAsync", "cudaStreamSynchronize")
            if key in events
        }
        report.figures[name] = shown or {"operators": sum(event.count for event in events.values())}
        slowest = sorted(events.values(), key=_own_time, reverse=True)[:10]
        report.figures[f"_{name} slowest"] = [(event.key, event.count, _own_time(event)) for event in slowest]
        waits = shown.get("cudaStreamSynchronize", 0)
        report.expect(f"{name}: {waits} waits in one pass", holds=waits <= 2)
        del runner
        release(check.device)


def prefill(check: Check, report: Report) -> None:
    """Prompts by token budget."""
    shape = check.shapes.large
    runner = _runner(check, shape, 100 if check.tiny else 1200)
    parameters = _weights(runner.decoder) / runner.decoder.dtype.itemsize
    for name, lengths in (("1 x 4096", [4096]), ("16 x 512", [512] * 16)):
        for budget in (1024, 8192):
            scale = 32 if check.tiny else 1
            chunks = _chunks([length // scale for length in lengths], budget // scale)
            before = _allocated(check, reset=True)
            started = time.perf_counter()
            for chunk in chunks:
                _pass(check, runner, chunk)
            seconds = time.perf_counter() - started
            speed = sum(new for chunk in chunks for new, _ in chunk) / seconds
            report.figures[f"{name} by {budget}"] = (
                f"{speed:.0f} tok/s, {2 * parameters * speed / check.flops:.0%} of the product's, "
                f"{(_peak(check) - before) / 1e9:.2f} GB"
            )


def draft(check: Check, report: Report) -> None:
    """What drafting costs beside its target, and what it would have to be right for."""
    blocks = 200 if check.tiny else 1600
    target, drafting = _runner(check, check.shapes.large, blocks), _runner(check, check.shapes.draft, blocks)
    for batch in (1, 4) if check.tiny else (1, 32):
        plain = _time_step(check, target, [(1, 64)] * batch).seconds
        verify = _time_step(check, target, [(5, 64)] * batch).seconds
        one = _time_step(check, drafting, [(1, 64)] * batch).seconds
        gains = {}
        for rate in (0.6, 0.8):
            gains[rate] = round((1 + accepted_tokens(rate)[4]) * plain / (verify + 4 * one), 2)
        report.figures[f"B={batch}"] = (
            f"pass {one * 1e3:.2f} ms, step {plain * 1e3:.2f} ms, verifying 4 {verify * 1e3:.2f} ms, "
            f"c={one / plain:.2f}, speed-up by acceptance {gains}"
        )
    started = time.perf_counter()
    profile = measure_costs(target, drafting, max_batch_size=4 if check.tiny else 32, max_depth=8)
    report.figures["profile_seconds"] = round(time.perf_counter() - started, 1)
    report.figures["_profile"] = {"target": profile.target, "draft": profile.draft}
    report.expect("costs of few token counts are known", holds=min(len(profile.target), len(profile.draft)) > 3)


@dataclass(frozen=True)
class _Step:
    """Medians: the whole step, the host's part up to the download, the device's own time."""

    seconds: float
    launch: float
    busy: float | None

    def text(self, tokens: int, floor: float) -> str:
        busy = "" if self.busy is None else f" busy {self.busy * 1e3:.2f}"
        return (
            f"{self.seconds * 1e3:.2f} ms ({tokens / self.seconds:.0f} tok/s, launch {self.launch * 1e3:.2f}{busy}, "
            f"{floor / self.seconds:.0%} of the floor)"
        )


def _time_step(check: Check, runner: ModelRunner, slices: list[tuple[int, int]]) -> _Step:
    warm, steps = (1, 3) if check.tiny else (_WARM, _STEPS)
    for _ in range(warm):
        _pass(check, runner, slices)
    made = [_pass(check, runner, slices) for _ in range(steps)]
    busy = [one[2] for one in made if one[2] is not None]
    return _Step(
        statistics.median(one[0] for one in made),
        statistics.median(one[1] for one in made),
        statistics.median(busy) if busy else None,
    )


@torch.no_grad()
def _pass(check: Check, runner: ModelRunner, slices: list[tuple[int, int]]) -> tuple[float, float, float | None]:
    """One greedy pass: (new tokens, tokens before them) a sequence. Their contexts are made up, and share blocks."""
    num_blocks = runner.cache.num_blocks
    planned, own = [], 0
    for new, context in slices:
        # Every sequence writes blocks of its own, and reads whatever stands in the others.
        start = min(context, num_blocks * _BLOCK - new) // _BLOCK * _BLOCK
        written = -(-new // _BLOCK)
        blocks = [(own + place) % num_blocks for place in range(start // _BLOCK + written)][::-1]
        own += written
        planned.append(TokenSlice(new, start, blocks))
    started = time.perf_counter()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if check.on_cuda else []
    if events:
        events[0].record()
    plan = runner.plan(planned)
    logits = runner.forward(plan, [[1] * new for new, _ in slices], range(min(plan.num_tokens, 288)))
    assert logits is not None, "rows were asked for"
    best = logits.max(dim=-1)
    together = torch.stack((best.values.float(), best.indices.float()))
    if events:
        events[1].record()
    launched = time.perf_counter()
    together.cpu()
    ended = time.perf_counter()
    return ended - started, launched - started, events[0].elapsed_time(events[1]) / 1e3 if events else None


def _chunks(lengths: list[int], budget: int) -> list[list[tuple[int, int]]]:
    """Steps of at most ``budget`` tokens that compute prompts one after the other."""
    steps: list[list[tuple[int, int]]] = [[]]
    left = budget
    for length in lengths:
        done = 0
        while done < length:
            new = min(length - done, left)
            steps[-1].append((new, done))
            done, left = done + new, left - new
            if left == 0:
                steps.append([])
                left = budget
    return [step for step in steps if step]


def _runner(check: Check, shape: Shape, num_blocks: int) -> ModelRunner:
    return ModelRunner(
        loaded(shape.name, make(shape, _half(check), check.device)).decoder,
        CacheConfig(num_blocks=num_blocks, block_size=_BLOCK),
    )


def _half(check: Check) -> torch.dtype:
    return {"cuda": torch.bfloat16, "xpu": torch.bfloat16, "cpu": torch.float32}.get(check.device.type, torch.float16)


def _weights(decoder: Decoder) -> int:
    """Bytes that a step reads."""
    return sum(linear.nbytes for linear in decoder.linears())


def _floor(check: Check, runner: ModelRunner, keys: int) -> float:
    """Seconds that reading the weights, and keys and values of so many tokens, takes at the measured bandwidth."""
    cached = runner.cache.geometry.block_bytes(1, runner.decoder.dtype) * keys
    return (_weights(runner.decoder) + cached) / check.bandwidth


def _seconds(check: Check, work: Any) -> float:
    """Of one of ten."""
    work()
    _wait(check)
    started = time.perf_counter()
    for _ in range(10):
        work()
    _wait(check)
    return (time.perf_counter() - started) / 10


def _wait(check: Check) -> None:
    torch.zeros(1, device=check.device).cpu()


def _allocated(check: Check, *, reset: bool = False) -> int:
    if not check.on_cuda:
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats(check.device)
    return torch.cuda.memory_allocated(check.device)


def _peak(check: Check) -> int:
    return torch.cuda.max_memory_allocated(check.device) if check.on_cuda else 0


def _own_time(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0.0) or event.self_cpu_time_total)


def _giga(count: int) -> float:
    return round(count / 1e9, 2)
