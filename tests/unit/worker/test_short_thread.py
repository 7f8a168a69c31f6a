"""A thread that ends with what it does, and leaves no pool of OpenMP behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from helix_jobs.errors import ModelError
from helix_jobs.settings import Settings
from helix_jobs.worker import workplace
from helix_jobs.worker.short_thread import on_short_thread
from helix_jobs.worker.workplace import Workplace

POOL = """
import os, torch
from helix_jobs.worker.short_thread import on_short_thread
torch.set_num_threads(4)

def compute():
    return torch.ones(2_000_000).exp().sum().item()  # more than one thread's share

before = len(os.listdir("/proc/self/task"))
{call}
print(len(os.listdir("/proc/self/task")) - before)
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


def test_who_interrupts_the_caller_interrupts_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        assert begun.wait(10)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_short_thread(work, "helix-test")
    assert ended.wait(0), "the caller goes on once the thread has ended"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("call", "left"), [("compute()", "3"), ("on_short_thread(compute, 'short')", "0")])
def test_no_pool_of_threads_is_left(call: str, left: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POOL.format(call=call)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == left


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
