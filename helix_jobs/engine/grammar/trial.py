"""GrammarTrial: compiles a constraint in another process first, with limited time and memory. No torch.

Trade-off: each new constraint is compiled twice, and the process holds the vocabulary once more (80 MB for 150,000
tokens). In return a hostile schema costs its own job and some seconds, not the worker.
"""

from __future__ import annotations

import json
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.text.bounded_process import (
    BoundedProcess,
    ProcessEndedError,
    ProcessLimits,
    RequestAtFaultError,
)
from helix_jobs.errors import EngineError

if TYPE_CHECKING:
    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.grammar.vocabulary import TokenTable

# Reading a vocabulary is the library's own work and takes seconds at most, also on a busy machine.
_SETUP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLimits:
    """Limits of compiling a constraint.

    Attributes:
        seconds: Processor time. Schemas in use take milliseconds; one of a thousand properties, half a second.
        process: The other limits of the process.
        bounds_itself: The process limits itself where its system can. The worker watches it in any case.
    """

    seconds: float = 10.0
    process: ProcessLimits = field(default_factory=lambda: ProcessLimits(memory_bytes=1_000_000_000))
    bounds_itself: bool = True


DEFAULT_TRIAL_LIMITS: Final = TrialLimits()


class GrammarTrial:
    """Tries constraints, one at a time, in a process that starts with the first one. Thread-safe.

    Args:
        table: The model's vocabulary.
        limits: Limits of each constraint.
    """

    def __init__(self, table: TokenTable, limits: TrialLimits = DEFAULT_TRIAL_LIMITS) -> None:
        own_seconds = _SETUP_SECONDS if limits.bounds_itself else 0
        memory = limits.process.memory_bytes if limits.bounds_itself else 0
        # The vocabulary itself is not limited: the worker holds it as well.
        setup = {"table": table.to_json(), "seconds": own_seconds, "memory_bytes": 0}
        self._setup = json.dumps({**setup, "own_memory_bytes": memory}).encode() + b"\n"
        self._limits = limits
        # At most one.
        self._running: list[BoundedProcess] = []
        weakref.finalize(self, _end, self._running)
        self._lock = threading.Lock()

    def check(self, constraint: Constraint) -> None:
        """Compile a constraint and compute its first mask.

        Raises:
            GrammarError: The library refuses it, or it exceeds the limits.
            EngineError: The process cannot be started, or was ended from outside.
            OSError, RuntimeError, MemoryError: The system cannot start a process (see ``exhaustion``).
        """
        own_seconds = self._limits.seconds if self._limits.bounds_itself else 0
        line = json.dumps({"constraint": constraint.to_dict(), "seconds": own_seconds}).encode() + b"\n"
        with self._lock:
            try:
                answer = self._started().ask(line, self._limits.seconds)
            except RequestAtFaultError as error:
                self.close()
                raise GrammarError(
                    f"the {constraint.kind} is too much to compile: its process {error}; simplify it"
                ) from error
            except ProcessEndedError as error:
                self.close()
                raise EngineError(f"the process that compiles constraints {error}; `retry` runs it again") from error
        if fault := answer["fault"]:
            raise GrammarError(fault)

    def close(self) -> None:
        """End the process. A later constraint starts a new one."""
        _end(self._running)

    def _started(self) -> BoundedProcess:
        if self._running and self._running[0].is_alive:
            return self._running[0]
        self.close()
        process = BoundedProcess("helix_jobs.engine.grammar.trial_process", self._limits.process)
        self._running.append(process)
        try:
            process.start(self._setup, _SETUP_SECONDS)
        except RequestAtFaultError as error:
            # No constraint is to blame for what happens before the first.
            raise ProcessEndedError(str(error)) from error
        return process


def _end(processes: list[BoundedProcess]) -> None:
    while processes:
        processes.pop().kill()
