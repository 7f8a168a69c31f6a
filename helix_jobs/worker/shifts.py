"""Shifts: a worker that works, rests and works again, in one process.

A rest is a whole end of the worker: it takes no more jobs, those that run end or go back to the queue without counting
an attempt, and its row is closed. Afterwards another worker begins. So nothing that holds for the end and the start of
a worker needs a second proof. The device and its models are freed, unless the rest is a pause: then the next worker
finds them as they were (``Workplace``).

Trade-off: a paused worker could stay registered and connected, and go on some tenths of a second sooner. But then each
part of it would need a state between working and stopping.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.open_engine import release_memory
from helix_jobs.errors import ConfigurationError, DeviceInUseError, UnreachableError
from helix_jobs.opening_hours import OpeningHours
from helix_jobs.redaction import redact
from helix_jobs.worker.device_lock import lock_directory
from helix_jobs.worker.machine_use import MachineUse
from helix_jobs.worker.others import Others
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.rest import LOOK_SECONDS, RestRules
from helix_jobs.worker.rest_sign import RestBoard
from helix_jobs.worker.shutdown import EXIT_OK
from helix_jobs.worker.stop_requests import StopRequests, install_signals
from helix_jobs.worker.workplace import LOCK_CHECK_SECONDS, Workplace
from helix_jobs.yield_when import YieldWhen

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.settings import Settings
    from helix_jobs.time_limits import TimeLimits
    from helix_jobs.worker.banner import WorkerBanner
    from helix_jobs.worker.rest import Rest

logger = logging.getLogger(__name__)

# Between two tries of a worker to begin after a rest, while what it needs does not answer.
RETRY_SECONDS: Final = 30.0


def work_in_shifts(
    settings: Settings,
    *,
    time_limits: TimeLimits,
    allow_shared_device: bool = False,
    on_progress: Callable[[str], None] | None = None,
    on_ready: Callable[[WorkerBanner], None] | None = None,
    stop: StopRequests | None = None,
    handle_signals: bool = True,
) -> int:
    """Run a worker, with rests, until it is told to stop; return the process's exit code.

    The arguments and the errors are those of ``run_worker``.
    """
    requests = stop or StopRequests()
    workplace = Workplace(settings, allow_shared=allow_shared_device)
    rules = _rules(settings, workplace.lock.device)
    board = RestBoard(lock_directory(settings.lock_dir), workplace.lock.device, redact(settings.database_url))
    teller = _Teller(board, on_progress)
    rest = rules.rest()
    has_rested = rest is not None
    with ExitStack() as stack:
        stack.callback(workplace.leave)
        stack.callback(teller.end)
        # A stop that comes between two workers is noted; while one loads its models, it is interrupted.
        requests.armed = True
        if handle_signals:
            install_signals(requests, stack)
        while rest is None or _sleep(rest, rules, teller, requests, workplace):
            # Imported here: it brings in the engine, which a worker that begins with a rest does not need yet.
            from helix_jobs.worker.process import run_worker

            teller.end()
            requests.begin_shift()
            try:
                code = run_worker(
                    settings,
                    time_limits=time_limits,
                    workplace=workplace,
                    on_progress=on_progress,
                    on_ready=on_ready,
                    stop=requests,
                    handle_signals=handle_signals,
                    rest=rules.rest,
                )
            except (UnreachableError, DeviceInUseError) as error:
                if not has_rested:  # somebody has just started it, and reads what is wrong
                    raise
                requests.armed = True
                rules.postpone(f"it cannot begin yet: {error}", datetime.now(UTC) + timedelta(seconds=RETRY_SECONDS))
                rest = rules.rest()
                continue
            has_rested = True
            rest = requests.rest
            if code != EXIT_OK or rest is None or requests.is_final:
                return code
            if not workplace.has_models:
                # The worker's parts refer to each other, so its models go only now.
                release_memory(settings)
    return EXIT_OK


class _Teller:
    """Tells of a rest: in the log, to whoever follows the worker, and to commands of this host.

    Args:
        board: For the commands.
        on_progress: For who follows it.
    """

    def __init__(self, board: RestBoard, on_progress: Callable[[str], None] | None) -> None:
        self._board = board
        self._on_progress = on_progress
        self._said = ""

    def tell(self, rest: Rest) -> None:
        """The worker rests at this moment."""
        self._board.show(rest)
        if rest.in_words == self._said:
            return
        self._said = rest.in_words
        logger.info("this worker rests: %s", self._said)
        if self._on_progress is not None:
            self._on_progress(f"resting: {self._said}")

    def end(self) -> None:
        """It rests no longer."""
        self._said = ""
        self._board.clear()


def _rules(settings: Settings, device: str) -> RestRules:
    hours = None if settings.hours is None else OpeningHours.parse(settings.hours)
    return RestRules(hours, device, lock_directory(settings.lock_dir), _others(settings, device))


def _others(settings: Settings, device: str) -> Others | None:
    if settings.yield_when is None:
        return None
    when, use = YieldWhen.parse(settings.yield_when), MachineUse(settings)
    if when.memory is not None and use.memory() is None:
        raise ConfigurationError(
            f"HELIX_YIELD_WHEN has memory, and {device} does not tell how much of it others hold; use load or process"
        )
    return Others(when, use)


def _sleep(
    rest: Rest,
    rules: RestRules,
    teller: _Teller,
    requests: StopRequests,
    workplace: Workplace,
) -> bool:
    """Wait for the rest to end; False if the process is asked to end meanwhile."""
    requests.begin_shift()
    keeping = Periodic("device-lock", workplace.lock.keep, LOCK_CHECK_SECONDS)
    keeping.start()
    try:
        _wait_for_the_end(rest, rules, teller, requests, workplace)
    finally:
        keeping.stop()
    return not requests.is_final


def _wait_for_the_end(
    rest: Rest,
    rules: RestRules,
    teller: _Teller,
    requests: StopRequests,
    workplace: Workplace,
) -> None:
    now: Rest | None = rest
    while now is not None and not requests.is_final:
        if workplace.has_models and not now.keeps_models:  # somebody wants the device of a paused worker
            workplace.leave()
        teller.tell(now)
        requests.pause(LOOK_SECONDS)
        now = rules.rest()
