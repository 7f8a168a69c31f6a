"""Recovery: handles failed steps, so that requests fail alone and a dead device is detected."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.devices.devices import check_alive, cleanup_memory, is_out_of_memory
from helix_jobs.engine.request import RequestState
from helix_jobs.errors import EngineBrokenError, EngineError, OutOfMemoryError, RequestError
from helix_jobs.exhaustion import is_exhaustion

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.schedule.scheduler import Scheduler
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.schedule.step_plan import Schedule

logger = logging.getLogger(__name__)

# This many requests that fail alone, with no passed step in between, mean that the device is at fault.
_MAX_SUSPECTS: Final = 3
# Attempts for a request that fails alone while no other request runs to compare it with.
_MAX_LONE_FAILURES: Final = 3
_LONGEST_QUOTE: Final = 200


class Recovery:
    """Frees memory after a failed step, makes the next one smaller, and finds the request that breaks steps.

    A step that ran out of memory is first repeated with fewer prompt tokens, which loses no work. Otherwise the batch
    is halved until the step passes or the one request that breaks it is found. That request is set aside. It ends with
    an error if it fails alone again after the engine has passed a step.

    Args:
        scheduler: The engine's scheduler.
        device: The device it computes on.
    """

    def __init__(self, scheduler: Scheduler, device: torch.device) -> None:
        self._scheduler = scheduler
        self._device = device
        # Requests that failed alone since a step last passed, each with the error to end with if it fails again.
        self._suspects: list[tuple[Sequence, RequestError]] = []

    @property
    def has_suspects(self) -> bool:
        """Whether requests were set aside and not tried again yet."""
        return bool(self._suspects)

    def recover(self, error: Exception, schedule: Schedule, steps_passed: int) -> None:
        """Prepare the next step after one that failed.

        Args:
            error: The exception, without its traceback, whose frames hold the step's tensors.
            schedule: The failed step.
            steps_passed: Steps of the engine that passed so far.

        Raises:
            EngineBrokenError: The device no longer computes, or several requests in a row fail alone and no step
                passes. The requests stay unfinished.
            OSError: ``error``, if the machine is exhausted: fewer requests would not help.
        """
        if is_exhaustion(error):
            raise error
        self._clean_up()
        if is_out_of_memory(error) and self._scheduler.shrink_prompts(schedule):
            logger.info("out of memory: prompts are computed in smaller pieces for a while")
            return
        active = self._scheduler.active
        if len(active) > 1:
            self._scheduler.shrink()
            return
        (sequence,) = active
        if sequence.failed_alone_at is not None and steps_passed > sequence.failed_alone_at:
            sequence.fail(_verdict(error))  # the engine has worked since its last failure
            return
        sequence.lone_failures, sequence.failed_alone_at = sequence.lone_failures + 1, steps_passed
        self._scheduler.set_aside(sequence)
        self._suspects.append((sequence, _verdict(error)))
        if len(self._suspects) >= _MAX_SUSPECTS:
            for suspect, _ in self._suspects:
                self._scheduler.add(suspect)
            self._suspects.clear()
            raise EngineBrokenError(f"{_MAX_SUSPECTS} requests in a row failed alone, and nothing passed; see the log")

    def recall_suspects(self) -> None:
        """Queue the requests set aside once more; a request that failed too often ends with its error."""
        for sequence, verdict in self._suspects:
            if sequence.lone_failures >= _MAX_LONE_FAILURES and sequence.state is not RequestState.FINISHED:
                sequence.fail(verdict)
            self._scheduler.add(sequence)
        self._suspects.clear()

    def forget_suspects(self) -> None:
        """Drop the requests set aside; the engine is being closed."""
        self._suspects.clear()

    def _clean_up(self) -> None:
        """Free memory and check that the device still computes.

        After an illegal access, an uncorrectable memory error or a suspension, every later call to the device fails in
        this process, whatever the request. Only a new process can use the device again.
        """
        try:
            cleanup_memory(self._device)
            check_alive(self._device)
        except Exception as fault:
            if is_out_of_memory(fault):  # another program has taken the memory; that passes
                return
            first_line = (str(fault).splitlines() or [""])[0][:_LONGEST_QUOTE]
            raise EngineBrokenError(
                f"the device no longer computes ({type(fault).__name__}: {first_line}); the worker has to be started "
                "again, and the driver or the machine if that does not help"
            ) from fault


def _verdict(error: Exception) -> RequestError:
    """The error of a request whose step, run alone, raised ``error``."""
    if is_out_of_memory(error):
        return OutOfMemoryError("the request does not fit into the device's memory even alone; shorten it")
    return EngineError(f"the engine failed on this request alone: {type(error).__name__}; the worker's log has more")
