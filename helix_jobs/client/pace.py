"""PaceMeter: how fast a batch, or the whole queue, goes on. Pure: its caller passes in what was read, and when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

_WINDOW_SECONDS: Final = 60.0


class Measured(Protocol):
    """What the pace is measured of: a batch's status is one."""

    @property
    def finished(self) -> int:
        """Jobs in a final state."""
        ...

    @property
    def total(self) -> int | None:
        """Jobs; None while they are being submitted."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answers so far."""
        ...

    @property
    def tokens_per_second(self) -> float | None:
        """Of the whole time so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The pace of a batch; None where it is not known yet.

    Attributes:
        tokens_per_second: Tokens of finished jobs per second.
        eta_seconds: Seconds until the last job ends, if the others take as long.
    """

    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class PaceMeter:
    """Measures the pace of one batch over the last minute of its updates.

    Trade-off: a short window follows a change of pace sooner, but jumps whenever several jobs end together. A minute is
    calm enough to read, and soon right again after a worker joins or a laptop wakes up.
    """

    def __init__(self, window: float = _WINDOW_SECONDS) -> None:
        self._window = window
        # (time, finished jobs, completion tokens)
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, now: float, status: Measured) -> Pace:
        """Add ``status``, read at the monotonic time ``now``, and return the pace."""
        finished, tokens = status.finished, status.completion_tokens
        self._samples.append((now, finished, tokens))
        # Keep one sample at or before the start of the window, so that the samples span the whole window.
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:  # noqa: PLR2004  (a span has two ends)
            self._samples.popleft()
        start, finished_then, tokens_then = self._samples[0]
        elapsed, ended = now - start, finished - finished_then
        if elapsed <= 0 or ended <= 0:
            return Pace(tokens_per_second=status.tokens_per_second if tokens else None)
        remaining = (status.total or 0) - finished
        return Pace(tokens_per_second=(tokens - tokens_then) / elapsed, eta_seconds=max(remaining, 0) * elapsed / ended)
