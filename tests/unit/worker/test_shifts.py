"""A stop that comes between two workers of one process."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import BrokerUnreachableError, ConfigurationError, DeviceInUseError
from helix_jobs.settings import Settings
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from helix_jobs.worker import process, shifts
from helix_jobs.worker.device_lock import lock_directory
from helix_jobs.worker.rest import Rest
from helix_jobs.worker.rest_note import RestNote, Wish, remove_rest_note, write_rest_note
from helix_jobs.worker.stop_requests import StopRequests

if TYPE_CHECKING:
    from pathlib import Path


def test_a_worker_that_is_asked_to_end_before_it_begins_loads_nothing(tmp_path: Path) -> None:
    """A stop may come between the end of a rest and the start of the next worker."""
    requests = StopRequests()
    requests.request_stop()
    requests.begin_shift()
    home = tmp_path / "home"
    settings = Settings.from_environment({"HELIX_HOME": str(home), "HELIX_ENGINE": "fake"})
    assert process.run_worker(settings, stop=requests, handle_signals=False) == 0
    assert not home.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_between_two_workers_ends_the_process_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own handler is gone by then, and that of the command would interrupt whatever runs."""
    began = []

    def run_worker(*_: object, stop: StopRequests, **__: object) -> int:
        began.append(stop)
        stop.request_rest(Rest("somebody else has the device", None))
        return 0

    monkeypatch.setattr(process, "run_worker", run_worker)
    monkeypatch.setattr(shifts, "release_memory", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    settings = Settings.from_environment(
        {"HELIX_HOME": str(tmp_path / "home"), "HELIX_LOCK_DIR": str(tmp_path / "locks"), "HELIX_ENGINE": "fake"}
    )
    assert shifts.work_in_shifts(settings, time_limits=DEFAULT_TIME_LIMITS) == 0
    assert len(began) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_while_a_worker_waits_to_begin_ends_the_process_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = lock_directory(tmp_path / "locks")

    def run_worker(*_: object, stop: StopRequests, **__: object) -> int:
        stop.armed = False  # as it does while it loads its models
        raise DeviceInUseError("another worker holds cpu")

    def on_progress(line: str) -> None:
        remove_rest_note(locks, Wish.PAUSE)
        if "it cannot begin yet" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(process, "run_worker", run_worker)
    monkeypatch.setattr(shifts, "LOOK_SECONDS", 0.01)
    write_rest_note(locks, Wish.PAUSE, RestNote())
    settings = Settings.from_environment(
        {"HELIX_HOME": str(tmp_path / "home"), "HELIX_LOCK_DIR": str(locks), "HELIX_ENGINE": "fake"}
    )
    assert shifts.work_in_shifts(settings, time_limits=DEFAULT_TIME_LIMITS, on_progress=on_progress) == 0


def test_a_sign_that_the_device_does_not_tell_is_refused_at_the_start(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "HELIX_HOME": str(tmp_path / "home"),
            "HELIX_LOCK_DIR": str(tmp_path / "locks"),
            "HELIX_ENGINE": "fake",
            "HELIX_YIELD_WHEN": "load>50%, memory>20%",
        }
    )
    with pytest.raises(ConfigurationError, match="fake does not tell how much of it others hold; use load or process"):
        shifts.work_in_shifts(settings, time_limits=DEFAULT_TIME_LIMITS)


def test_a_worker_that_cannot_begin_after_its_rest_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sits there at ten in the evening to start it anew."""
    locks = lock_directory(tmp_path / "locks")
    tries: list[str] = []
    lines: list[str] = []

    def run_worker(*_: object, **__: object) -> int:
        tries.append("tried")
        if len(tries) < 3:
            raise BrokerUnreachableError("the broker at redis://box does not answer")
        return 0

    def go_on(line: str) -> None:
        lines.append(line)
        remove_rest_note(locks, Wish.PAUSE)

    monkeypatch.setattr(process, "run_worker", run_worker)
    monkeypatch.setattr(shifts, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(shifts, "LOOK_SECONDS", 0.01)
    write_rest_note(locks, Wish.PAUSE, RestNote())
    settings = Settings.from_environment(
        {"HELIX_HOME": str(tmp_path / "home"), "HELIX_LOCK_DIR": str(locks), "HELIX_ENGINE": "fake"}
    )
    told = {"time_limits": DEFAULT_TIME_LIMITS, "on_progress": go_on, "handle_signals": False}
    assert shifts.work_in_shifts(settings, **told) == 0
    assert len(tries) == 3
    waits = "resting: it cannot begin yet: the broker at redis://box does not answer"
    assert lines == ["resting: paused (helix pause --worker)", waits, waits]
    assert not list(locks.glob("resting-*"))
    tries.clear()
    with pytest.raises(BrokerUnreachableError):  # somebody has just started it
        shifts.work_in_shifts(settings, **told)
    assert len(tries) == 1
