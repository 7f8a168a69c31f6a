"""Celery's configuration: what the worker's threads share."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import celery.app.backends
from celery import Celery

from helix_jobs.broker.celery.app import celery_settings
from helix_jobs.broker.queue_names import QueueNames
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    import pytest


def test_a_second_thread_looks_up_no_result_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up reads the files of all installed packages, and a worker out of descriptors can open none."""
    application = Celery("made-up", set_as_current=False)
    application.conf.update(celery_settings(Settings.from_environment({}), QueueNames("made-up")))
    first = application.backend

    def opens_files(*_: object) -> dict[str, Any]:
        raise OSError("too many open files")

    monkeypatch.setattr(celery.app.backends, "load_extension_class_names", opens_files)
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(application.backend))
    thread.start()
    thread.join(20)
    assert seen == [first]


_FIRST_TASK_ENDS = """
import celery.app.backends
from helix_jobs.broker.celery.app import app, configure
from helix_jobs.broker.queue_names import QueueNames
from helix_jobs.settings import Settings

configure(Settings.from_environment({}), QueueNames("made-up"))

def opens_files(*_):
    raise OSError("too many open files")

celery.app.backends.load_extension_class_names = opens_files
app.backend.process_cleanup()
"""


def test_the_first_task_that_ends_looks_up_no_result_backend() -> None:
    """Descriptors may have run out before a worker's first task ends."""
    child = subprocess.run(  # the application belongs to its process
        [sys.executable, "-c", _FIRST_TASK_ENDS], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
