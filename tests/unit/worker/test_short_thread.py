"""A thread that ends with what it does, and leaves no pool of OpenMP behind."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from helix_jobs.errors import ModelError
from helix_jobs.settings import Settings
from helix_jobs.worker import workplace
from helix_jobs.worker.short_thread import on_short_thread
from helix_jobs.worker.workplace import Workplace

POOL = """
import os, time, torch
from helix_jobs.worker.short_thread import on_short_thread
torch.set_num_threads(4)

def compute():
    return torch.ones(2_000_000).exp().sum().item()  # more than one thread's share

def count():
    return len(os.listdir("/proc/self/task"))

before = count()
{call}
deadline = time.monotonic() + 10
while count() - before > {left} and time.monotonic() < deadline:  # a thread that has ended is listed for a moment
    time.sleep(0.01)
print(count() - before)
"""


def test_it_returns_what_the_function_returns_and_its_thread_has_ended() -> None:
    thread = on_short_thread(threading.current_thread, "helix-test")
    assert thread is not threading.current_thread()
    assert thread.name == "helix-test"
    assert not thread.is_alive()


def test_an_error_is_the_callers() -> None:
    def fail() -> None:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        on_short_thread(fail, "helix-test")


INTERRUPTED = """
import signal, time
from helix_jobs.worker.short_thread import on_short_thread

def work():
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        while True:
            time.sleep(0.01)
    finally:
        time.sleep(0.5)
        print("the function has ended")

def handle(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, handle)
try:
    on_short_thread(work, "short")
except KeyboardInterrupt:
    print("the caller goes on")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_who_interrupts_the_caller_interrupts_the_function_and_waits_for_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["the function has ended", "the caller goes on"]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("call", "left"), [("compute()", 3), ("on_short_thread(compute, 'short')", 0)])
def test_no_pool_of_threads_is_left(call: str, left: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POOL.format(call=call, left=left)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) == left


def test_a_worker_loads_its_models_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    loaders: list[threading.Thread] = []
    usual = workplace.load_engine

    def load(*arguments: object) -> object:
        loaders.append(threading.current_thread())
        return usual(*arguments)

    monkeypatch.setattr(workplace, "load_engine", load)
    place = Workplace(Settings.from_environment({"HELIX_ENGINE": "fake", "HELIX_LOCK_DIR": str(tmp_path)}))
    assert place.engine(None) is place.engine(None)
    (loader,) = loaders
    assert loader is not threading.current_thread()
    assert not loader.is_alive()
    place.leave()
