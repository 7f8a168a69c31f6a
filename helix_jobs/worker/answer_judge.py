"""AnswerJudge: judges answers by their jobs' acceptance rules; strangers' patterns in a process with limits.

Trade-off: one process judges one answer after the other, at some 0.2 ms each. A rule whose pattern does not come to an
end holds up other jobs' answers for at most the limit, and never the engine.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.acceptance.judge import Answer, judge
from helix_jobs.engine.text.bounded_process import (
    BoundedProcess,
    ProcessEndedError,
    ProcessLimits,
    RequestAtFaultError,
)
from helix_jobs.errors import EngineError, ExhaustedError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.acceptance.rule import AcceptanceRule

_MODULE: Final = "helix_jobs.worker.judge_process"
# Processor time for one answer. Patterns that mean no harm take milliseconds.
SECONDS: Final = 2.0
# The interpreter's start on a busy machine.
_START_SECONDS: Final = 20.0
_LIMITS: Final = ProcessLimits(memory_bytes=1_000_000_000)


class AnswerJudge:
    """Judges answers. Thread-safe; the process is started when it is needed.

    Args:
        seconds: Processor time for one answer.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: BoundedProcess | None = None

    def judge(self, rule: AcceptanceRule, answer: Answer, own_schema: Mapping[str, Any] | None) -> str | None:
        """Return why the rule refuses the answer, or None if it accepts it.

        An answer with which a pattern does not come to an end is refused.

        Raises:
            EngineError: The process was ended from outside, twice.
            ExhaustedError: The system cannot start a process.
        """
        if not rule.has_pattern:
            return judge(rule, answer)
        request = {"rule": rule.to_dict(), "answer": asdict(answer), "own_schema": own_schema, "seconds": self._seconds}
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                try:
                    return self._ask(line)
                except RequestAtFaultError:
                    raise
                except ProcessEndedError:  # killed by a user or for lack of memory, perhaps not because of this answer
                    return self._ask(line)
            except RequestAtFaultError as error:
                return f"its rule came to no end with it: the process that judges answers {error}"
            except ProcessEndedError as error:
                raise EngineError(f"the process that judges answers {error}; `retry` runs it again") from error
            except (OSError, RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                raise ExhaustedError(explain_exhaustion(error)) from error

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._drop()

    def _ask(self, line: bytes) -> str | None:
        process = self._process
        try:
            if process is None or not process.is_alive:
                self._drop()
                process = self._process = BoundedProcess(_MODULE, _LIMITS)
                setup = {"seconds": _START_SECONDS, "memory_bytes": _LIMITS.memory_bytes}
                process.start(json.dumps(setup).encode() + b"\n", _START_SECONDS)
            reason: str | None = process.ask(line, self._seconds)["reason"]
        except Exception:
            self._drop()
            raise
        return reason

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
