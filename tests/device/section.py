"""A part of the device check: its figures, its deadline, and what of it went wrong."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from device_models import REAL, TINY, Shapes, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

# One line of a section is no longer, so that the whole stays readable.
_LINE = 700


class DeadlineError(Exception):
    """A section took longer than it may."""


@dataclass
class Report:
    """What a section found.

    Attributes:
        figures: By name; they go into the file.
        failures: Sentences, one for each expectation that was not met.
        rows: Of the closing table: what, milliseconds, floor in milliseconds.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    rows: list[tuple[str, float, float]] = field(default_factory=list)

    def expect(self, text: str, *, holds: bool) -> None:
        if not holds:
            self.failures.append(text)


@dataclass
class Check:
    """The run: where, how, and what is known by now."""

    device: torch.device
    tiny: bool
    file: Path
    ends: float
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

    def run(self, name: str, seconds: float, section: Callable[[Check, Report], None]) -> None:
        """Run a section: one line at once, the figures into the file, a failure shown and passed over."""
        report, started = Report(), time.monotonic()
        left = min(seconds, self.ends - started)
        error = None
        if left < 1:
            error = "no time left"
        else:
            try:
                with _deadline(left):
                    section(self, report)
            except DeadlineError:
                error = f"not done within {left:.0f} s"
            except Exception as raised:  # the next sections may still tell something
                error = f"{type(raised).__name__}: {str(raised).splitlines()[:1]}"
                report.figures["traceback"] = traceback.format_exc()[-3000:]
        with contextlib.suppress(Exception):
            release(self.device)
        failures = [*report.failures, *([error] if error else [])]
        self.failures += [f"{name}: {failure}" for failure in failures]
        self.rows += report.rows
        took = time.monotonic() - started
        record = {"section": name, "seconds": round(took, 2), "failures": failures, **report.figures}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")
        shown = {key: value for key, value in report.figures.items() if key != "traceback" and not key.startswith("_")}
        text = (
            f"[{'FAILED' if failures else 'ok'}] {name} {took:.1f} s {' '.join(f'{k}={v}' for k, v in shown.items())}"
        )
        print(text[:_LINE], *(f"    ! {failure[:_LINE]}" for failure in failures[:4]), sep="\n", flush=True)


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
