"""The wheel works where there is no clone: in an environment of its own, which borrows this one's libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import helix_jobs
from helix_jobs.storage.migration import head_revision
from tests.services import missing_service

ROOT = Path(__file__).parents[2]
BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("hatchling") is None:
        missing_service("hatchling is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of a virtual environment's programs."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / BIN / "python"
    install = ["install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install],
        check=True,
        timeout=120,
        env=_environment(folder),
    )
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # A path that a .pth file adds comes last, and its own .pth files, an editable Helix among them, are not read.
    Path(paths["purelib"], "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


def _environment(home):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "PYTHON"))}
    return environment | {"HELIX_HOME": str(home)}


def _run(command, home, timeout=120):
    done = subprocess.run(
        command, check=False, cwd=home, env=_environment(home), capture_output=True, text=True, timeout=timeout
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_that_helix_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("dist-info/licenses/LICENSE")]
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "helix_jobs").rglob("*") if path.is_file()}
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "migrations").rglob("*") if path.is_file()}
    expected = package | {f"helix_jobs/_{name}" for name in scripts}
    assert held == {name for name in expected if "__pycache__" not in name}
    page = {".html", ".css", ".js", ".svg", ".txt"}
    licence_texts = {name for name in held if Path(name).name in ("LICENSE", "NOTICE")}
    assert {Path(name).suffix for name in held - licence_texts} == {".py", ".cpp", ".h", ".mako", *page}
    assert licences


def test_the_version_is_the_packages_own(wheel):
    assert wheel.name.split("-")[1] == helix_jobs.__version__


@pytest.mark.thorough
def test_helix_runs_without_a_clone(installed, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    helix = str(installed / "helix")
    place = "import helix_jobs; print(helix_jobs.__file__)"
    found = Path(_run([str(installed / "python"), "-c", place], tmp_path).strip())
    assert found.is_relative_to(installed.parent)
    said = f"helix {helix_jobs.__version__}\n"
    assert _run([helix, "--version"], tmp_path) == said
    assert _run([str(installed / "python"), "-m", "helix_jobs", "--version"], tmp_path) == said
    moved = json.loads(_run([helix, "db", "upgrade", "--json"], tmp_path))
    assert (moved["before"], moved["after"]) == (None, head_revision())
    assert json.loads(_run([helix, "submit", "prompts.jsonl", "--json"], tmp_path))["total"] == 1


@pytest.mark.thorough
def test_the_kernels_compile_without_a_clone(installed, tmp_path, monkeypatch):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        missing_service("no C++ compiler")
    # Whether the sources are whole shows without optimisation, which takes most of a compiler's time.
    quick = tmp_path / "quick-c++"
    quick.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} "$@" -O0\n', encoding="utf-8")
    quick.chmod(0o755)
    monkeypatch.setenv("CXX", str(quick))
    script = (
        "from pathlib import Path; from helix_jobs.engine.kernels.cpu.build import build_libraries; "
        "print(*build_libraries(Path('native'), 64))"
    )
    libraries = _run([str(installed / "python"), "-c", script], tmp_path, timeout=600).split()
    assert len(libraries) == 2
    assert all((tmp_path / library).stat().st_size for library in libraries)
