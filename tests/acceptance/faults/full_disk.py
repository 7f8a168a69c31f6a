"""SmallDisk: a file system so small that a test can fill it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.services import missing_service


class SmallDisk:
    """A tmpfs of a few megabytes; needs the right to mount one, which root on Linux has.

    Args:
        megabytes: Its size.
    """

    def __init__(self, megabytes: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="hxdisk-"))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "helix-test", str(self.path)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.path.rmdir()
            missing_service("no right to mount a small file system (root on Linux has it)")

    def fill(self) -> None:
        """Leave no byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        """Take the filling away."""
        self._ballast.unlink()

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self.path.rmdir()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"
