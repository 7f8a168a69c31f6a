"""The libraries of compiled kernels: when they are compiled, of what, and what is said where they cannot be."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from helix_jobs.engine.kernels.cpu import build
from helix_jobs.engine.kernels.cpu.build import build_libraries
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.errors import ConfigurationError
from tests.unit.engine.tiny_models import (
    CPU,
)

DTYPES = (torch.float32, torch.bfloat16)


def test_the_libraries_are_compiled_once(folder, monkeypatch):
    first = build_libraries(folder, 16)

    def refuse(command, **kwargs):
        assert "--version" in command, "compiled again"
        return subprocess_run(command, **kwargs)

    subprocess_run = subprocess.run
    monkeypatch.setattr(build.subprocess, "run", refuse)
    assert build_libraries(folder, 16) == first
    assert set(first) <= set(folder.iterdir())


def test_heads_of_another_size_compile_no_more_than_what_reads_heads(tmp_path, monkeypatch):
    """The compiler is a stand-in: what counts is which sources it is given."""
    compiler = tmp_path / "quick-c++"
    compiler.write_text(
        '#!/bin/sh\nfor last; do [ "$previous" = -o ] && : > "$last"; previous=$last; done\necho "$last" >> "$CALLS"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    first = build_libraries(tmp_path / "native", 16)
    sources = {Path(line).name for line in (tmp_path / "calls").read_text().splitlines() if line.endswith(".cpp")}
    assert sources == {path.name for path in Path(build.__file__).parent.glob("*.cpp")}
    (tmp_path / "calls").unlink()
    second = build_libraries(tmp_path / "native", 32)
    sources = {Path(line).name for line in (tmp_path / "calls").read_text().splitlines() if line.endswith(".cpp")}
    assert sources == {"attention.cpp", "int8_decoder.cpp"}
    assert (first[0] == second[0], first[1] == second[1]) == (True, False)


@pytest.mark.parametrize("library", [build._COMMON, build._of_heads(16)], ids=["common", "of heads"])
def test_a_library_depends_on_all_that_its_sources_include(library):
    """Else a changed header would not compile it anew."""
    included, unread = set(), [path.name for path in library.source_paths]
    while unread:
        text = (Path(build.__file__).parent / unread.pop()).read_text()
        unread += (found := set(re.findall(r'#include "(.+)"', text)) - included)
        included |= found
    assert {f"{name}.h" for name in library.headers} == included


def test_the_engine_alone_says_when_its_kernels_are_ready(folder, caplog):
    build_libraries(folder, 16)
    caplog.set_level("INFO")
    for dtype in DTYPES:
        load_kernels(folder, dtype, CPU, 16)
    assert caplog.messages == []


def test_no_compiler_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigurationError, match=r"no C\+\+ compiler.*--no-compile"):
        build_libraries(tmp_path / "native", 64)


def test_a_failing_compiler_is_a_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo one && exit 0\necho 'bad source' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ConfigurationError, match="bad source"):
        build_libraries(tmp_path / "native", 64)
    assert not list((tmp_path / "native").iterdir())


def test_a_system_without_threads_to_spare_is_a_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ConfigurationError, match=r"can't start new thread.*--no-compile"):
        build_libraries(tmp_path / "native", 64)
    assert not list((tmp_path / "native").iterdir())


@pytest.mark.parametrize("program", [b"\x7fELF of another machine", b"#!/bin/sh\nprintf 'b\\374se' >&2; exit 1\n"])
def test_a_compiler_that_cannot_run_or_says_what_is_no_utf8_is_a_clear_error(tmp_path, monkeypatch, program):
    compiler = tmp_path / "mycc"
    compiler.write_bytes(program)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ConfigurationError, match=r"cannot compile the kernels .*--no-compile"):
        build_libraries(tmp_path / "native", 64)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float16, "cpu"), (torch.bfloat16, "meta")])
def test_other_dtypes_and_devices_are_refused(tmp_path, dtype, device):
    with pytest.raises(ConfigurationError, match="float32 and bfloat16 on the CPU"):
        load_kernels(tmp_path, dtype, torch.device(device), 64)


def test_heads_that_are_no_whole_vectors_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="a multiple of 16, not of 40"):
        load_kernels(tmp_path, torch.float32, CPU, 40)
