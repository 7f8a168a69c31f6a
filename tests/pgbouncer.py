"""PgBouncer: a connection pooler of a test's own, in transaction mode, before a Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.services import missing_service
from tests.worker_box import wait_until

# PgBouncer refuses to run as root.
_USER = "postgres"


class PgBouncer:
    """Runs from the beginning until ``stop``; a client has a server connection for one transaction at a time.

    Args:
        port: Of a Postgres on this machine that lets the user helix in.
        pool_size: Server connections for all clients together.
    """

    def __init__(self, port: int, pool_size: int = 3) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            missing_service("no pgbouncer (Debian's package pgbouncer)")
        self._user = _USER if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="hxpgb-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        users = self._folder / "users"
        users.write_text('"helix" ""\n')
        configuration = self._folder / "pgbouncer.ini"
        self._command = (program, str(configuration))
        configuration.write_text(
            f"[databases]\n* = host=127.0.0.1 port={port} user=helix\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\nunix_socket_dir=\n"
            f"auth_type=any\nauth_file={users}\npool_mode=transaction\ndefault_pool_size={pool_size}\n"
            # As releases before 1.21 are, and as later ones were set up by whoever did not touch it.
            "max_client_conn=200\nserver_reset_query=\n"
        )
        if self._user is not None:
            for path in (self._folder, users, configuration):
                shutil.chown(path, self._user)
        self._log = (self._folder / "log").open("wb")
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://helix@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, also again after ``kill``, and wait until it takes connections."""
        self._process = subprocess.Popen(self._command, user=self._user, stdout=self._log, stderr=self._log)
        self._wait()

    def kill(self) -> None:
        """End it; every connection through it is gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it for good."""
        self.kill()
        self._log.close()
        shutil.rmtree(self._folder)

    def _wait(self) -> None:
        wait_until(lambda: self._answers() or self._process.poll() is not None, self._said, 20)
        assert self._process.poll() is None, self._said()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _said(self) -> str:
        return (self._folder / "log").read_text()
