"""Made-up passes of a model: over contexts that nobody computed, in any mix of lengths, and how long they take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.devices.devices import free_memory
from helix_jobs.engine.model.runner import ModelRunner
from tests.device.device_models import loaded, make

if TYPE_CHECKING:
    from helix_jobs.engine.model.decoder import Decoder
    from tests.device.device_models import Shape
    from tests.device.section import Check, Report

BLOCK = 16
_WARM, _STEPS = 10, 30


@dataclass(frozen=True)
class Step:
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


def time_step(check: Check, runner: ModelRunner, slices: list[tuple[int, int]]) -> Step:
    warm, steps = (1, 3) if check.tiny else (_WARM, _STEPS)
    for _ in range(warm):
        one_pass(check, runner, slices)
    made = [one_pass(check, runner, slices) for _ in range(steps)]
    busy = [one[2] for one in made if one[2] is not None]
    return Step(
        statistics.median(one[0] for one in made),
        statistics.median(one[1] for one in made),
        statistics.median(busy) if busy else None,
    )


@torch.no_grad()
def one_pass(check: Check, runner: ModelRunner, slices: list[tuple[int, int]]) -> tuple[float, float, float | None]:
    """One greedy pass: (new tokens, tokens before them) a sequence. Their contexts are made up, and share blocks."""
    planned = token_slices(runner, slices)
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


def token_slices(runner: ModelRunner, slices: list[tuple[int, int]]) -> list[TokenSlice]:
    num_blocks = runner.cache.num_blocks
    planned, own = [], 0
    for new, context in slices:
        # Every sequence writes blocks of its own, and reads whatever stands in the others.
        start = min(context, num_blocks * BLOCK - new) // BLOCK * BLOCK
        written = -(-new // BLOCK)
        blocks = [(own + place) % num_blocks for place in range(start // BLOCK + written)][::-1]
        own += written
        planned.append(TokenSlice(new, start, blocks))
    return planned


def count_groups(runner: ModelRunner, slices: list[tuple[int, int]]) -> int:
    """Dense attention problems that each layer cuts a step into, one after the other."""
    return len(runner.plan(token_slices(runner, slices)).attention.groups)


def prompt_chunks(lengths: list[int], budget: int) -> list[list[tuple[int, int]]]:
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


def new_runner(check: Check, shape: Shape, num_blocks: int) -> ModelRunner:
    """With so many blocks, or as many as there is memory for."""
    decoder = loaded(shape.name, make(shape, half_dtype(check), check.device)).decoder
    free = free_memory(check.device)
    if free is not None:
        num_blocks = min(num_blocks, int(0.7 * free) // decoder.geometry.block_bytes(BLOCK, decoder.dtype))
    return ModelRunner(decoder, CacheConfig(num_blocks=num_blocks, block_size=BLOCK))


def room_for(check: Check) -> float:
    """Bytes that a model takes for each parameter, with something for its cache and its steps."""
    return 1.25 * half_dtype(check).itemsize


def large_shape(check: Check, report: Report, share: float = 1.0) -> Shape:
    """The large model, or the largest that fits into such a share of the free memory."""
    return check.fitting(report, room_for(check) / share, check.shapes.large, check.shapes.one, check.shapes.small)


def half_dtype(check: Check) -> torch.dtype:
    return {"cuda": torch.bfloat16, "xpu": torch.bfloat16, "cpu": torch.float32}.get(check.device.type, torch.float16)


def weight_bytes(decoder: Decoder) -> int:
    """Bytes that a step reads."""
    return sum(linear.nbytes for linear in decoder.linears())


def floor_seconds(check: Check, runner: ModelRunner, keys: int) -> float:
    """Seconds that reading the weights, and keys and values of so many tokens, takes at the measured bandwidth."""
    cached = runner.cache.geometry.block_bytes(1, runner.decoder.dtype) * keys
    return (weight_bytes(runner.decoder) + cached) / check.bandwidth


def wait_for(check: Check) -> None:
    torch.zeros(1, device=check.device).cpu()


def allocated_bytes(check: Check, *, reset: bool = False) -> int:
    if not check.on_cuda:
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats(check.device)
    return torch.cuda.memory_allocated(check.device)


def peak_bytes(check: Check) -> int:
    return torch.cuda.max_memory_allocated(check.device) if check.on_cuda else 0
