"""A part of the device check: its figures, its deadline, and what of it went wrong."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.devices.devices import cleanup_memory, free_memory
from tests.device.device_models import REAL, TINY, Shape, Shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

# What a section prints: its line, and what failed or was left out. All of it stays below 12,000 characters.
_LINE = 320
_SENTENCE = 110
_SENTENCES = 3


class DeadlineError(Exception):
    """A section took longer than it may."""


class LeftOutError(Exception):
    """A section cannot run here; the text says why."""


@dataclass
class Report:
    """What a section found.

    Attributes:
        figures: By name; they go into the file.
        failures: Sentences, one for each expectation that was not met.
        left_out: What of the section could not be done here, and why.
        rows: Of the closing table: what, milliseconds, floor in milliseconds.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: list[tuple[str, float, float]] = field(default_factory=list)

    def expect(self, text: str, *, holds: bool) -> None:
        if not holds:
            self.failures.append(text)

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append(f"{what}: {why}")


@dataclass
class Check:
    """The run: where, how, and what is known by now."""

    device: torch.device
    tiny: bool
    file: Path
    # Of the device, measured by the first section: bytes and operations a second.
    bandwidth: float = 0.0
    flops: float = 0.0
    failures: list[str] = field(default_factory=list)
    rows: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        return TINY if self.tiny else REAL

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def fits(self, report: Report, shape: Shape, bytes_each: float) -> bool:
        """Whether there is memory for a model, at so many bytes for each parameter; where nobody tells, it is tried."""
        free, needed = free_memory(self.device), bytes_each * shape.num_parameters
        if free is None or needed <= free:
            return True
        report.leave_out(shape.name, f"it takes {needed / 1e9:.1f} GB here, {free / 1e9:.1f} are free")
        return False

    def fitting(self, report: Report, bytes_each: float, *shapes: Shape) -> Shape:
        """The first of these shapes that fits."""
        for shape in shapes:
            if self.fits(report, shape, bytes_each):
                return shape
        raise LeftOutError("there is too little memory")

    def run(self, name: str, ends: float, section: Callable[[Check, Report], None]) -> None:
        """Run a section: one line at once, the figures into the file, a failure shown and passed over.

        Args:
            name: What it is called.
            ends: By ``time.monotonic``, when it has to be done.
            section: What it does.
        """
        report, started = Report(), time.monotonic()
        left = ends - started
        verdict, error = "ok", None
        if left <= 0:
            error = "no time left"
        else:
            try:
                with _deadline(left):
                    section(self, report)
            except LeftOutError as reason:
                verdict = "left out"
                report.left_out.append(str(reason))
            except DeadlineError:
                error = f"not done within {left:.0f} s"
            except Exception as raised:  # the next sections may still tell something
                error = f"{type(raised).__name__}: {str(raised).splitlines()[:1]}"
                report.figures["traceback"] = traceback.format_exc()[-3000:]
        with contextlib.suppress(Exception):
            cleanup_memory(self.device)
        failures = [*report.failures, *([error] if error else [])]
        self.failures += [f"{name}: {failure}" for failure in failures]
        self.rows += report.rows
        took = time.monotonic() - started
        record = {"section": name, "seconds": round(took, 2), "failures": failures, "left_out": report.left_out}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | report.figures, default=str) + "\n")
        shown = {key: value for key, value in report.figures.items() if key != "traceback" and not key.startswith("_")}
        figures = " ".join(f"{key}={value}" for key, value in shown.items())
        print(f"[{'FAILED' if failures else verdict}] {name} {took:.1f} s {figures}"[:_LINE])
        sentences = [*(f"! {failure}" for failure in failures), *(f"- {part}" for part in report.left_out)]
        for sentence in sentences[:_SENTENCES]:
            print(f"    {sentence[:_SENTENCE]}")
        if len(sentences) > _SENTENCES:
            print(f"    and {len(sentences) - _SENTENCES} more, see {self.file.name}")
        sys.stdout.flush()


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise ``DeadlineError`` in the block after so many seconds, where there are alarms (not on Windows)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise DeadlineError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
