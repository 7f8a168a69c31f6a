"""Who has certainly ended, as far as this process can see."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from helix_jobs.storage.process_identity import (
    UNKNOWN_START,
    Here,
    ProcessIdentity,
    here,
    is_gone,
    started,
    this_process,
)
from tests.worker_box import wait_until

HERE = Here(boot_id="boot", pid_namespace="ns", started={1: "100", 7: UNKNOWN_START}.get)
WORKER = ProcessIdentity(pid=1, boot_id="boot", pid_namespace="ns", started="100")


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, False),
        ({"pid": 555}, True),  # no such process
        ({"started": "99"}, True),  # its number is another process's by now
        ({"started": None}, False),  # the number is in use, by whom cannot be told
        ({"pid": 7}, False),
        # The first process of another container, of another machine, of this machine before its restart; a row of an
        # older version.
        ({"pid_namespace": "another", "started": "99"}, False),
        ({"boot_id": "another", "pid": 555}, False),
        ({"boot_id": None, "pid_namespace": None, "started": None, "pid": 555}, False),
    ],
)
def test_who_is_gone(changes: dict[str, Any], *, gone: bool) -> None:
    assert is_gone(dataclasses.replace(WORKER, **changes), HERE) is gone


def test_nobody_is_gone_for_a_process_that_does_not_know_where_it_is() -> None:
    nowhere = dataclasses.replace(HERE, boot_id=None, pid_namespace=None)
    unknown = ProcessIdentity(pid=555)
    assert not is_gone(unknown, nowhere)
    assert not is_gone(dataclasses.replace(WORKER, pid=555), nowhere)


def test_this_process_is_there() -> None:
    mine = this_process()
    assert mine.pid == os.getpid()
    assert mine == this_process()
    assert not is_gone(mine, here())
    if sys.platform == "linux":
        assert mine.boot_id
        assert mine.pid_namespace
        assert mine.started


@pytest.mark.skipif(sys.platform == "win32", reason="children of POSIX")
def test_a_child_is_gone_when_it_has_ended_whether_or_not_anybody_waited_for_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = this_process()
    identity = dataclasses.replace(mine, pid=child.pid, started=here().started(child.pid))
    assert not is_gone(identity, here())
    child.kill()
    if sys.platform == "linux":
        wait_until(lambda: is_gone(identity, here()), "it has ended and nobody waits for it")
    child.communicate()
    assert is_gone(identity, here())


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces of Linux")
def test_the_first_process_of_another_namespace_is_nobody_that_can_be_judged() -> None:
    script = (
        "from helix_jobs.storage.process_identity import this_process\n"
        "import dataclasses, json; print(json.dumps(dataclasses.asdict(this_process())))\n"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no new namespaces for this user")
    printed = subprocess.run([*unshare, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    there = ProcessIdentity(**json.loads(printed.stdout))
    mine = this_process()
    assert (there.pid, there.boot_id) == (1, mine.boot_id)
    assert there.pid_namespace != mine.pid_namespace
    assert not is_gone(there, here())


def test_which_processes_there_are():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert started(os.getpid())
    assert started(1) is not None
    assert [started(pid) for pid in (child.pid, 0, -1)] == [None] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
def test_a_process_that_may_not_be_looked_at_is_there(monkeypatch: pytest.MonkeyPatch):
    """Another user's, where the system hides what belongs to others."""

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert started(2**22 + 1) == UNKNOWN_START
