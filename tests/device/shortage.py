"""The section that takes memory away: out of memory, one kernel error, a prompt that can never fit."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from tests.device.answers import OFF, chosen_shape, equal
from tests.device.device_models import engine_of, loaded, make, outputs, prompts, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helix_jobs.engine.loaded_models import LoadedModel
    from tests.device.device_models import Shape
    from tests.device.section import Check, Report

# Steps under a shortage that lasts, and how many may fail in their second half: each trial that failed has to make the
# next one rarer. Tried as often as at first, six would fail.
_STEPS, _LATE_FAULTS = 200, 2


def shortage(check: Check, report: Report) -> None:
    """Whatever runs out or breaks, the others finish, with the same outputs."""
    shape, num_tokens = chosen_shape(check, report, 7), 8 if check.tiny else 32
    target = loaded("target", make(shape, torch.float32, check.device))
    count = 8 if check.tiny else 32
    texts = prompts(count, 40 if check.tiny else 400, shape.vocab)
    expected = outputs(engine_of(target, None, OFF).generate(requests(texts, num_tokens)))
    before = torch.cuda.memory_allocated(check.device) if check.on_cuda else 0
    for name, limit in (("memory", _little_memory(check, shape, count)), ("kernel", _one_fault(check))):
        engine = engine_of(target, None, OFF, max_batch_size=count)
        with limit as faults:
            results = engine.generate(requests(texts, num_tokens))
        failed = [result.error.code for result in results if result.error is not None]
        same = equal(outputs(results), expected)
        report.figures[name] = f"{same}/{count} faults={faults.count} failed={failed}"
        report.expect(f"{name}: {same} of {count} outputs are as without", holds=same == count)
        report.expect(f"{name}: nothing failed on the way, so nothing was tried", holds=faults.count > 0)
        engine.close()
    _last(check, report, shape, target, texts)
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
    else:
        why = f"only on CUDA; what was taken away on {check.device.type} is made up"
        report.leave_out("the allocator's own limit, and memory that is not given back", why)


def _last(check: Check, report: Report, shape: Shape, target: LoadedModel, texts: list[list[int]]) -> None:
    """A shortage that lasts is asked about more and more rarely."""
    count = len(texts)
    engine = engine_of(target, None, OFF, max_batch_size=count)
    for request in requests([text[:40] for text in texts], _STEPS):
        engine.add_request(engine.encode(request))
    counts: list[int] = []
    with _little_memory(check, shape, count) as faults:
        for _ in range(_STEPS):
            engine.step()
            counts.append(faults.count)
    late = counts[-1] - counts[_STEPS // 2 - 1]
    report.figures[f"out_of_memory_in_{_STEPS}_steps"] = f"{counts[-1]}, {late} of them in the second half"
    report.expect(f"{late} of the last {_STEPS // 2} steps ran out of memory", holds=late <= _LATE_FAULTS)
    report.expect("no step ran out of memory, so nothing was tried", holds=counts[-1] > 0)
    engine.close()


class _Faults:
    """Calls that failed since this was made."""

    def __init__(self, check: Check) -> None:
        self.calls = 0
        self.made_up = 0
        self._check = check
        self._before = self._of_the_allocator()

    @property
    def count(self) -> int:
        """Those made up, and those of CUDA's allocator."""
        return self.made_up + self._of_the_allocator() - self._before

    def _of_the_allocator(self) -> int:
        return torch.cuda.memory_stats(self._check.device).get("num_ooms", 0) if self._check.on_cuda else 0


@contextlib.contextmanager
def _patched_bmm(check: Check, fault: Callable[[torch.Tensor, _Faults], Exception | None]) -> Iterator[_Faults]:
    faults, real = _Faults(check), torch.bmm

    def bmm(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        faults.calls += 1
        error = fault(first, faults)
        if error is not None:
            faults.made_up += 1
            raise error
        return real(first, second)

    torch.bmm = bmm
    try:
        yield faults
    finally:
        torch.bmm = real


def _one_fault(check: Check) -> contextlib.AbstractContextManager[_Faults]:
    return _patched_bmm(check, lambda _, faults: RuntimeError("a made-up kernel fault") if faults.calls == 20 else None)


@contextlib.contextmanager
def _little_memory(check: Check, shape: Shape, count: int) -> Iterator[_Faults]:
    """On CUDA the allocator's own limit; there and elsewhere products of many rows fail as if memory ran out."""
    heads = shape.kv_heads * count // 4
    error = torch.OutOfMemoryError("out of memory, made up")
    with _patched_bmm(check, lambda first, _: error if first.shape[0] > heads else None) as faults:
        if not check.on_cuda:
            yield faults
            return
        total = torch.cuda.get_device_properties(check.device).total_memory
        torch.cuda.empty_cache()
        # The engine's cache is allocated by now; what is left holds a step of a few sequences.
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved(check.device) + (64 << 20)) / total), check.device
        )
        try:
            yield faults
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, check.device)
