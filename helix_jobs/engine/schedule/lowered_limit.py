"""BackOff: a limit that is lowered when a step does not fit and raised again, later after each failed trial."""

from __future__ import annotations

from typing import Final

_FIRST_WAIT: Final = 16
_LONGEST_WAIT: Final = 1024
_WAIT_GROWTH: Final = 4


class BackOff:
    """How much a step may hold at present.

    After enough passed steps a lowered limit is doubled, on trial. If the trial fails, the next one waits four times as
    long, since each failed trial discards work. Once the maximum is reached and holds, the shortage counts as over.

    Trade-off: short waits regain throughput soon after a passing shortage; long ones waste less when it lasts.

    Args:
        maximum: The limit without a shortage.
        minimum: The lowest limit.
    """

    def __init__(self, maximum: int, *, minimum: int = 1) -> None:
        self._maximum = maximum
        self._minimum = min(minimum, maximum)
        self._value = maximum
        self._wait = _FIRST_WAIT
        self._good_steps = 0
        self._is_on_trial = False

    @property
    def value(self) -> int:
        """The limit at present."""
        return self._value

    @property
    def minimum(self) -> int:
        """The lowest limit."""
        return self._minimum

    def lower(self, value: int) -> None:
        """Lower the limit to ``value`` after a step that did not fit."""
        if self._is_on_trial:
            self._wait = min(_LONGEST_WAIT, _WAIT_GROWTH * self._wait)
        self._is_on_trial = False
        self._good_steps = 0
        self._value = max(self._minimum, min(self._value, value))

    def passed(self) -> None:
        """Count a step that passed within the limit."""
        if self._value == self._maximum and not self._is_on_trial:
            return
        self._good_steps += 1
        if self._value < self._maximum and self._good_steps >= self._wait:
            self._good_steps = 0
            self._is_on_trial = True
            self._value = min(self._maximum, 2 * self._value)
        elif self._value == self._maximum and self._good_steps >= _WAIT_GROWTH * self._wait:
            self._is_on_trial = False
            self._wait = _FIRST_WAIT
