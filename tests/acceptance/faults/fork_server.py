"""ForkServer: starts processes of the launcher in a tenth of a second, by forking one that has imported everything."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.worker_box import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.faults.plan import Plan

LAUNCHER = ("-m", "tests.acceptance.faults.launcher")
PATIENCE = 60.0


class ForkedProcess:
    """What ``subprocess.Popen`` is to a child, for a child of the fork server."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)


class ForkServer:
    """One launcher with ``--serve``."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, *LAUNCHER, "--serve"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started: queue.SimpleQueue[ForkedProcess] = queue.SimpleQueue()
        self._children: dict[int, ForkedProcess] = {}
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(PATIENCE), "the fork server does not start"

    def start(
        self, plan: Plan, command: str, arguments: list[str], *, environment: dict[str, str], directory: Path, log: Path
    ) -> ForkedProcess:
        request = {
            "plan": plan.to_json(),
            "command": command,
            "arguments": arguments,
            "environment": environment,
            "directory": str(directory),
            "log": str(log),
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        return self._started.get(timeout=PATIENCE)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(PATIENCE)
        self._reader.join()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            message: dict[str, Any] = json.loads(line)
            if "ready" in message:
                self._ready.set()
            elif "started" in message:
                child = self._children[message["started"]] = ForkedProcess(message["started"])
                self._started.put(child)
            else:
                child = self._children.pop(message["ended"])
                child.returncode = message["code"]
                child.ended.set()
