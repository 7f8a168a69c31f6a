"""A clone in which a person types the pages' commands: real commands, workers and broker, the fake engine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs import HelixClient
from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.settings import Settings
from tests.acceptance.readme_text import ROOT
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from pathlib import Path

# For what hangs: on a busy machine a command here may well take a minute or two.
PATIENCE = 600.0


def is_worker(command: str) -> bool:
    """Whether a command line runs until it is stopped."""
    return command.startswith(("python worker.py", "helix worker"))


@dataclass
class Scene:
    """One clone. HELIX_HOME is not set, so everything lies in its ``.helix``, as docs/settings.md says."""

    directory: Path
    environment: dict[str, str] = field(init=False)
    worker: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        programs = self.directory / "bin"
        programs.mkdir()
        for name, arguments in {"python": "", "helix": " -m helix_jobs", "celery": " -m celery"}.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{arguments} "$@"\n', encoding="utf-8")
            program.chmod(0o755)
        (self.directory / "tmp").mkdir()
        self.clone.mkdir()
        for name in ("submit.py", "worker.py", "examples"):
            (self.clone / name).symlink_to(ROOT / name)
        examples = (ROOT / "examples" / "prompts.jsonl").read_text(encoding="utf-8")
        # The fake engine echoes prompts; this one is cut off.
        cut_off = '{"prompt": "one two three four five", "max_tokens": 3}\n'
        (self.clone / "prompts.jsonl").write_text(examples + cut_off, encoding="utf-8")
        # A command in a pipe is as wide as it likes; pytest-xdist tells its workers a width.
        foreign = ("HELIX_", "CELERY_", "COLUMNS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment = {
            **kept,
            "PATH": f"{programs}{os.pathsep}{kept.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.directory / "tmp"),
            # No other test's worker may be in the way.
            "HELIX_LOCK_DIR": str(self.directory / "tmp" / "locks"),
            "HELIX_ENGINE": "fake",
        }

    @property
    def clone(self) -> Path:
        return self.directory / "clone"

    @property
    def home(self) -> Path:
        return self.clone / ".helix"

    @property
    def settings(self) -> Settings:
        return Settings.from_environment({**self.environment, "HELIX_HOME": str(self.home)})

    def type(self, command: str) -> subprocess.CompletedProcess[str] | None:
        """Run one command line as its page has it; a worker goes on in the background until the next one comes."""
        if "BATCH" in command:
            with HelixClient(self.settings) as client:
                command = command.replace("BATCH", client.list(1)[0].id)
        name, is_export, value = command.removeprefix("export ").partition("=")
        if is_export and command.startswith("export "):
            self.environment[name] = value
            return None
        if is_worker(command):
            self.start_worker(command)
            return None
        return self.run(command)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def start_worker(self, command: str = "python worker.py") -> None:
        """Start a worker and wait until it says in the database that it lives."""
        self.stop_worker()
        log = self.directory / "worker.txt"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.clone,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.worker = worker
        with HelixClient(self.settings) as client:
            wait_until(
                lambda: any(live.pid == worker.pid for live in client.live_workers()) or worker.poll() is not None,
                lambda: f"{command} is not ready: {log.read_text(encoding='utf-8')}",
                PATIENCE,
            )
        assert worker.poll() is None, f"{command}: {log.read_text(encoding='utf-8')}"

    def stop_worker(self) -> None:
        """Ctrl-C, once; the worker must end well."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.send_signal(signal.SIGINT)
            code = worker.wait(PATIENCE)
            assert code == 0, (self.directory / "worker.txt").read_text(encoding="utf-8")

    def close(self) -> None:
        """Leave no process behind, whatever went wrong."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        if self.home.exists():
            EmbeddedBroker(self.home).stop()
