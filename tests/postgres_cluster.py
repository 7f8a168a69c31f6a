"""PostgresCluster: a Postgres server of a test's own, to be stopped and started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.services import missing_service

# Postgres refuses to run as root.
_USER = "postgres"


def _binaries() -> Path:
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else list(Path("/usr/lib/postgresql").glob("*/bin"))
    folders = [folder for folder in folders if (folder / "initdb").exists()]
    if not folders:
        missing_service("no Postgres server binaries (initdb, pg_ctl)")
    return max(folders)


class PostgresCluster:
    """Made by initdb in a temporary directory, on a port of its own, durable as by default.

    Args:
        parent: Where that directory is made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._bin = _binaries()
        self._user = _USER if os.geteuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="hxpg-", dir=parent))
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._run("initdb", "--pgdata", str(self._data), "--auth", "trust", "--username", "helix", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://helix@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=16MB"
        log = str(self._directory / "log")
        self._run("pg_ctl", "start", "--wait", "--pgdata", str(self._data), "--log", log, "--options", options)

    def stop(self, mode: str) -> None:
        """Stop it: ``fast`` ends every connection, ``immediate`` is a crash."""
        self._run("pg_ctl", "stop", "--wait", "--pgdata", str(self._data), "--mode", mode)

    def remove(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--pgdata", str(self._data), "--mode", "immediate", check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        # No pipes: the server would keep them open, and whoever reads them would wait for its end.
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=check,
            cwd=self._directory,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
