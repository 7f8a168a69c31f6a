"""Sections that measure: the device's ceilings, memory, steps, launches, prompts, a draft model's passes."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.devices.devices import cleanup_memory, describe_device, free_memory
from helix_jobs.engine.loading.cache_size import choose_cache
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.model.step_memory import step_bytes
from helix_jobs.engine.speculation.depth.controller import DepthController
from helix_jobs.engine.speculation.depth.costs import StepCosts
from helix_jobs.engine.speculation.depth.plan import DraftCandidate, accepted_tokens
from helix_jobs.engine.speculation.depth.profile import measure_costs
from tests.device.device_models import MAX_CONTEXT, make
from tests.device.passes import (
    BLOCK,
    allocated_bytes,
    count_groups,
    floor_seconds,
    half_dtype,
    large_shape,
    new_runner,
    one_pass,
    peak_bytes,
    prompt_chunks,
    room_for,
    time_step,
    wait_for,
    weight_bytes,
)
from tests.device.section import LeftOutError

if TYPE_CHECKING:
    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from tests.device.device_models import Shape
    from tests.device.section import Check, Report


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
            report.leave_out("clocks", str(error))
    else:
        report.leave_out("clocks", f"nvidia-smi tells nothing of {check.device.type}")
    size = (1 << 24) if check.tiny or not check.on_cuda else min(1 << 32, (free_memory(check.device) or 1 << 34) // 4)
    source = torch.zeros(size // 2, dtype=torch.float16, device=check.device)
    target = torch.empty_like(source)
    check.bandwidth = 2 * source.nbytes / _seconds(check, lambda: target.copy_(source))
    side = 256 if check.tiny or not check.on_cuda else 8192
    dtype = half_dtype(check)
    matrix = torch.zeros((side, side), dtype=dtype, device=check.device)
    check.flops = 2 * side**3 / _seconds(check, lambda: matrix @ matrix)
    report.figures |= {"TB/s": round(check.bandwidth / 1e12, 3), "TFLOP/s": round(check.flops / 1e12, 2)}


def memory(check: Check, report: Report) -> None:
    """Loading leaves no holes, the cache takes what is left, long prompts fit beside it."""
    shape, dtype = large_shape(check, report), half_dtype(check)
    free = free_memory(check.device)
    placement = Placement(dtype=dtype, device=check.device)
    decoder = build_decoder(make(shape, dtype, torch.device("cpu"), values=False), placement)
    decoder.pack()
    if check.on_cuda:
        report.figures["reserved_at_first_GB"] = _giga(torch.cuda.memory_reserved(check.device))
    else:
        report.leave_out("what is allocated, reserved, and a chunk's peak", f"{check.device.type} does not count it")
    cleanup_memory(check.device)
    config = EngineConfig()
    left = free_memory(check.device)
    block_bytes = decoder.geometry.block_bytes(BLOCK, dtype)
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
        "weights_GB": _giga(weight_bytes(decoder)),
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
        wanted = 0.8 * ((free or 0) - weight_bytes(decoder))
        taken = cache.num_blocks * block_bytes
        most = config.max_batch_size * (MAX_CONTEXT // BLOCK + 1) * block_bytes
        report.expect(f"the cache takes {taken / wanted:.2f} of what it should", holds=taken >= 0.9 * min(wanted, most))
    # As much cache as the longest prompt below needs, and no more than a worker would have.
    lengths = (256, 1024) if check.tiny else (4096, 16384, 32768, 131072 - 1024)
    keys = [count for count in lengths if count + 1024 <= cache.num_blocks * BLOCK]
    if len(keys) < len(lengths):
        report.leave_out(f"prompts of more than {cache.num_blocks * BLOCK} tokens", "the cache has no room for them")
    if not keys:
        return
    runner = ModelRunner(decoder, CacheConfig(num_blocks=(keys[-1] + 1024) // BLOCK, block_size=BLOCK))
    peaks = {}
    for count in keys:
        before = allocated_bytes(check, reset=True)
        one_pass(check, runner, [(1024, count)])
        peaks[count] = round((peak_bytes(check) - before) / 1e9, 3)
    report.figures["chunk_peak_GB"] = peaks
    report.expect(f"a chunk takes {max(peaks.values())} GB", holds=max(peaks.values()) * 1e9 <= largest)


def decode(check: Check, report: Report) -> None:
    """Plain steps, by model, batch and context."""
    shapes = [
        shape
        for shape in (check.shapes.small, check.shapes.one, check.shapes.large)
        if check.fits(report, shape, room_for(check))
    ]
    cells: list[tuple[Shape, int, int]] = []
    for shape in shapes:
        for batch in (1, 2) if check.tiny else (1, 8, 32, 128, 256):
            for context in (64,) if check.tiny else (256, 1024):
                short = shape is check.shapes.large and batch == 256
                cells.append((shape, batch, 512 if short and context > 512 else context))
    runner, known = None, ""
    for shape, batch, context in cells:
        if shape.name != known or runner is None:
            runner = None
            cleanup_memory(check.device)
            wanted = 40 if check.tiny else 256 * 1040 // BLOCK
            runner, known = new_runner(check, shape, wanted), shape.name
            if runner.cache.num_blocks < wanted:
                tokens = runner.cache.num_blocks * BLOCK
                report.leave_out(f"{known}, contexts of their own", f"sequences share a cache of {tokens} tokens")
        step = time_step(check, runner, [(1, context)] * batch)
        floor = floor_seconds(check, runner, batch * context)
        report.figures[f"{shape.name} B={batch} c={context}"] = step.text(batch, floor)
        report.rows.append((f"{shape.name} B={batch} context={context}", step.seconds * 1e3, floor * 1e3))
    if runner is None:
        raise LeftOutError("there is too little memory")
    mixed = [(1 + i % 9, 64 + (i * 61) % (192 if check.tiny else 1984)) for i in range(4 if check.tiny else 32)]
    step = time_step(check, runner, mixed)
    floor = floor_seconds(check, runner, sum(context for _, context in mixed))
    report.figures["mixed"] = f"{step.text(len(mixed), floor)}, {count_groups(runner, mixed)} groups of attention"
    if not check.on_cuda:
        report.leave_out("the device's own time", f"{check.device.type} has no events to tell it by")
    report.rows.append((f"{known} B={len(mixed)} mixed depths and lengths", step.seconds * 1e3, floor * 1e3))


def counts(check: Check, report: Report) -> None:
    """Launches and waits of one step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if check.on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    else:
        report.leave_out(
            "launches, copies and waits",
            f"the profiler tells them on CUDA only; on {check.device.type} it counts operators",
        )
    large = large_shape(check, report)
    for name, shape, slices in (
        ("large B=1", large, [(1, 64)]),
        ("large B=32 mixed", large, [(1 + i % 9, 64 + i * 16) for i in range(4 if check.tiny else 32)]),
        ("draft B=1", check.shapes.draft, [(1, 64)]),
    ):
        runner = new_runner(check, shape, 1600 if check.on_cuda else 100)
        one_pass(check, runner, slices)
        with torch.profiler.profile(activities=activities) as profile:
            one_pass(check, runner, slices)
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
        cleanup_memory(check.device)


def prefill(check: Check, report: Report) -> None:
    """Prompts by token budget."""
    runner = new_runner(check, large_shape(check, report), 100 if check.tiny else 1200)
    parameters = weight_bytes(runner.decoder) / runner.decoder.dtype.itemsize
    for name, lengths in (("1 x 4096", [4096]), ("16 x 512", [512] * 16)):
        for budget in (1024, 8192):
            scale = 32 if check.tiny else 1
            chunks = prompt_chunks([length // scale for length in lengths], budget // scale)
            before = allocated_bytes(check, reset=True)
            started = time.perf_counter()
            for chunk in chunks:
                one_pass(check, runner, chunk)
            seconds = time.perf_counter() - started
            speed = sum(new for chunk in chunks for new, _ in chunk) / seconds
            report.figures[f"{name} by {budget}"] = (
                f"{speed:.0f} tok/s, {2 * parameters * speed / check.flops:.0%} of the product's, "
                f"{(peak_bytes(check) - before) / 1e9:.2f} GB"
            )


def draft(check: Check, report: Report) -> None:
    """What drafting costs beside its target, and what it would have to be right for."""
    blocks = 200 if check.tiny else 1600
    target = new_runner(check, large_shape(check, report, 0.8), blocks)
    drafting = new_runner(check, check.shapes.draft, blocks)
    for batch in (1, 4) if check.tiny else (1, 32):
        plain = time_step(check, target, [(1, 64)] * batch).seconds
        verify = time_step(check, target, [(5, 64)] * batch).seconds
        one = time_step(check, drafting, [(1, 64)] * batch).seconds
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
    for rate in (0.6, 0.8):
        report.figures[f"chosen_at_{rate}"] = _chosen(profile, rate, 4 if check.tiny else 32)
    report.expect("costs of few token counts are known", holds=min(len(profile.target), len(profile.draft)) > 3)


def kernels(_check: Check, _report: Report) -> None:
    """Kernels for the device against torch's operators."""
    raise LeftOutError("Helix has kernels of its own for the CPU alone; elsewhere torch's operators compute")


def graphs(_check: Check, _report: Report) -> None:
    """Captured steps against eager ones."""
    raise LeftOutError("Helix captures no graphs yet; every step is launched operator by operator")


def _chosen(profile: CostProfile, acceptance: float, batch: int) -> dict[int, tuple[int, ...]]:
    """The depths that the controller chooses at these costs, by batch."""
    chosen = {}
    for count in (1, batch):
        controller = DepthController(StepCosts(profile), max_depth=8, can_compute=True, initial_acceptance=acceptance)
        candidates = [DraftCandidate(ceiling=8, acceptance=acceptance, remaining_tokens=256)] * count
        chosen[count] = tuple(sorted(set(controller.choose(candidates).computed_depths)))
    return chosen


def _own_time(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0.0) or event.self_cpu_time_total)


def _seconds(check: Check, work: Any) -> float:
    """Of one of ten."""
    work()
    wait_for(check)
    started = time.perf_counter()
    for _ in range(10):
        work()
    wait_for(check)
    return (time.perf_counter() - started) / 10


def _giga(count: int) -> float:
    return round(count / 1e9, 2)
