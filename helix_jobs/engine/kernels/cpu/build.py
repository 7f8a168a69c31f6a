"""Compile the kernels once per machine, compiler and source, and keep the libraries."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import (
    PRIVATE_DIRECTORY,
    is_own_program,
    make_private_directory,
    note_use,
    read_private,
    write_private,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_FOLDER: Final = Path(__file__).parent
_COMPILERS: Final = ("c++", "g++", "clang++")
# No -ffast-math: linked into a library it changes how the whole process treats subnormal numbers. The parts of it that
# vectorisation needs are named one by one, and NaN stays NaN.
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
)
# Compiling takes a quarter of a minute on an idle machine; the limit is for a very busy one.
_TIMEOUT_SECONDS: Final = 600
_VERSION_SECONDS: Final = 30


@dataclass(frozen=True)
class _Library:
    """What one library is compiled of: files of this folder, by their names without the suffix."""

    prefix: str
    sources: tuple[str, ...]
    headers: tuple[str, ...]
    definitions: tuple[str, ...] = ()

    @property
    def source_paths(self) -> tuple[Path, ...]:
        return tuple(_FOLDER / f"{name}.cpp" for name in self.sources)

    @property
    def flags(self) -> tuple[str, ...]:
        return (*_FLAGS, *self.definitions)

    def name(self, compiler: str, version: str) -> str:
        """The file's name, with a digest of everything that the library depends on."""
        paths = (*self.source_paths, *(_FOLDER / f"{name}.h" for name in self.headers))
        texts = [path.read_text(encoding="utf-8") for path in paths]
        parts = (*texts, *self.flags, compiler, version, platform.machine(), processor_features())
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{self.prefix}-{digest[:16]}.so"


# Serves heads of any size, so that another model compiles no more than what its heads ask for.
_COMMON: Final = _Library(
    "kernels",
    sources=("experts", "kernels", "packed_linear", "packed_int8", "int8_linear", "tiled_linear"),
    headers=(
        *("lanes", "activations", "pairs", "tiles", "transpose", "bytes", "shortage"),
        *("blocks", "level_blocks", "decoded_rows", "row_products", "panel_sums", "block_tiles", "expert_products"),
        "layer_outputs",
        *("rounded_blocks", "byte_tiles", "byte_products"),
    ),
)


def _of_heads(head_dim: int) -> _Library:
    """The kernels whose loops over a head are unrolled."""
    return _Library(
        f"kernels-heads{head_dim}",
        sources=("int8_decoder", "attention"),
        headers=(
            *("lanes", "activations", "pairs", "tiles", "transpose", "stored_rows"),
            *("softmax", "attention", "bytes", "shortage"),
        ),
        definitions=(f"-DHEAD_DIM={head_dim}",),
    )


def build_libraries(folder: Path, head_dim: int) -> tuple[Path, Path]:
    """Return the compiled libraries, compiling what ``folder`` does not hold yet.

    A file's name carries a digest of everything it depends on: another source, compiler, processor or system compiles
    anew.

    Args:
        folder: Keeps the libraries.
        head_dim: Size of the heads.

    Returns:
        The library for heads of any size, and the one for heads of this size.

    Raises:
        ConfigurationError: There is no compiler, or it fails; the message says what to install. Or the folder is a link
            or another user's.
    """
    compiler = _find_compiler()
    version = _run([compiler, "--version"], _VERSION_SECONDS).stdout
    # What takes longest to compile comes first, so that no processor waits for it at the end.
    libraries = {folder / library.name(compiler, version): library for library in (_of_heads(head_dim), _COMMON)}
    make_private_directory(folder)
    missing = {place: library for place, library in libraries.items() if not _is_ready(place)}
    if missing:
        _build(compiler, folder, missing)
    of_heads, common = libraries
    return common, of_heads


def _is_ready(library: Path) -> bool:
    """Whether a library can be loaded; if so its use is noted."""
    if is_own_program(library) and _is_sealed(library):
        note_use(library)
        with suppress(OSError):  # as in note_use
            _seal(library)  # noting the use changes the status time, too
        return True
    if library.exists():
        # The library's code would run in this process, so another user must not have been able to write it.
        logger.warning("%s was not made here, or could have been written by another user; it is compiled anew", library)
    return False


def _build(compiler: str, folder: Path, libraries: dict[Path, _Library]) -> None:
    """Compile libraries, all their sources side by side, to the places given.

    Raises:
        ConfigurationError: The compiler fails.
    """
    # Compile in a scratch folder and move the results into place: two workers may compile at once, and a killed one
    # leaves nothing.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = {
            (place, source): str(Path(scratch) / f"{place.stem}-{source.stem}.o")
            for place, library in libraries.items()
            for source in library.source_paths
        }
        _side_by_side(
            [
                [compiler, *libraries[place].flags, "-c", "-o", made, str(source)]
                for (place, source), made in objects.items()
            ]
        )
        for place, library in libraries.items():
            partial = Path(scratch) / place.name
            own = [objects[place, source] for source in library.source_paths]
            _compile([compiler, *library.flags, "-shared", "-o", str(partial), *own])
            partial.chmod(PRIVATE_DIRECTORY)  # the compiler set the mode by the umask
            partial.replace(place)
            _seal(place)


def _side_by_side(commands: list[list[str]]) -> None:
    """Run compilers, as many at once as there are processors.

    Raises:
        ConfigurationError: One fails, or the system gives no threads to wait for them.
    """
    try:
        with ThreadPoolExecutor(max_workers=min(len(commands), _num_processors())) as pool:
            # Whoever fails first in the list is named; the others end by themselves.
            for running in [pool.submit(_compile, command) for command in commands]:
                running.result()
    except RuntimeError as error:
        raise ConfigurationError(f"the kernels cannot be compiled ({error}); {_remedy()}") from error


def _num_processors() -> int:
    """The processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


def _compile(command: list[str]) -> None:
    """Run the compiler.

    Raises:
        ConfigurationError: It fails.
    """
    done = _run(command, _TIMEOUT_SECONDS)
    if done.returncode != 0:
        logger.debug("%s said: %s", command[0], done.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"{command[0]} cannot compile the kernels ({last}); {_remedy()}")


def _seal(library: Path) -> None:
    """Mark the library as made here, in a way that no copy of the directory keeps."""
    write_private(_seal_of(library), _mark(library))


def _is_sealed(library: Path) -> bool:
    """Whether this user made the library where it stands.

    A file's owner does not tell its origin: files out of an archive belong to the user who unpacks it. But only the
    system sets the time of a file's last status change, and nobody can know that time in advance. Trade-off: a home
    that was copied or restored, or whose modes were changed, compiles its kernels once more.
    """
    try:
        return hmac.compare_digest(read_private(_seal_of(library)), _mark(library))
    except (OSError, ConfigurationError):
        return False


def _seal_of(library: Path) -> Path:
    return library.with_suffix(".seal")


def _mark(library: Path) -> bytes:
    status = library.lstat()
    return f"{status.st_ino} {status.st_size} {status.st_ctime_ns}\n".encode()


def compiles_kernels(device: torch.device, when: str) -> bool:
    """Whether kernels are compiled for a device, as far as that can be told before.

    Args:
        device: Where models compute.
        when: As in ``with_compiled_kernels``.
    """
    if device.type != "cpu" or when == "off":
        return False
    try:
        _find_compiler()
    except ConfigurationError:
        return False
    return True


def _find_compiler() -> str:
    """The compiler that CXX names, or else the first of the usual ones."""
    if sys.platform == "win32":
        raise ConfigurationError(f"compiled kernels are not available on Windows; {_remedy()}")
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise ConfigurationError(f"there is no C++ compiler ({', '.join(_COMPILERS)}); {_remedy()}")


def _remedy() -> str:
    return "install g++ or clang++, or go on without: --no-compile (HELIX_COMPILE=off)"


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the compiler.

    Raises:
        ConfigurationError: The compiler cannot be run (it may be another machine's), or it does not end.
    """
    try:
        return subprocess.run(  # noqa: S603  (the user's compiler, our source)
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{command[0]} cannot compile the kernels ({error}); {_remedy()}") from error


def processor_features() -> str:
    """The processor that ``-march=native`` means here: different machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
