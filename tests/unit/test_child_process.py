"""ChildProcess: lines to and from another process."""

from __future__ import annotations

import queue
import sys

import pytest

from helix_jobs.child_process import ChildProcess

ECHO = "import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)\nsys.exit(3)"


@pytest.fixture
def start():
    started = []

    def begin(script):
        said = queue.SimpleQueue()
        child = ChildProcess([sys.executable, "-c", script], name="child", on_line=said.put, on_end=said.put)
        started.append(child)
        return child, said

    yield begin
    for child in started:
        child.kill()
        child.close_input()
        child.join()


def test_lines_go_both_ways_and_its_end_is_told_last(start):
    child, said = start(ECHO)
    for word in (b"one", b"two"):
        child.send(word + b"\n")
        assert said.get(timeout=30).strip() == word[::-1]
    child.close_input()
    child.close_input()
    assert said.get(timeout=30) is child
    assert child.wait(30) == 3


def test_waiting_has_a_deadline_and_a_child_that_stays_is_killed(start):
    child, said = start("import time\ntime.sleep(600)")
    assert child.wait(0.05) is None
    child.kill()
    child.kill()
    child.join()
    assert child.wait(0) != 0
    assert said.get(timeout=0) is child


def test_what_is_sent_to_a_child_that_is_gone_is_an_error(start):
    child, said = start("")
    assert said.get(timeout=30) is child
    child.wait(30)
    with pytest.raises(OSError, match=r"pipe|Invalid"):
        child.send(b"x\n")


def test_a_program_that_does_not_exist_is_an_error():
    with pytest.raises(FileNotFoundError):
        ChildProcess(["/no/such/program"], name="child", on_line=print, on_end=print)
