"""Kernels compiled for other processors than this one, and run here."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.kernels.cpu import build
from helix_jobs.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Haswell has AVX2 and FMA; the plain x86-64 has neither, and takes the path of processors that nobody wrote code for.
PROCESSORS = ("haswell", "x86-64")


def compiled_for(processor: str, sources: Sequence[str], folder: Path, *options: str) -> ctypes.CDLL:
    """The library of these source files, kept in ``folder`` between runs of the tests; skips where it cannot be run."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if platform.machine() != "x86_64" or compiler is None:
        pytest.skip("these processors cannot be had here")
    if processor == "haswell" and "avx2" not in build.processor_features():
        pytest.skip("this processor has no AVX2")
    command = [compiler, *(flag.replace("native", processor) for flag in build._FLAGS), *options, "-w", "-shared"]
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    files = sorted(path for path in build._FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    depends_on = [" ".join([*sources, *command]).encode(), version, *(path.read_bytes() for path in files)]
    library = folder / f"other-{hashlib.sha256(b'|'.join(depends_on)).hexdigest()[:16]}.so"
    with FileLock(folder / "tests.lock"):
        if not library.is_file():
            partial = library.with_suffix(".partial")
            paths = [str(build._FOLDER / source) for source in sources]
            subprocess.run([*command, "-o", str(partial), *paths], check=True)
            partial.replace(library)
    return ctypes.CDLL(str(library))
