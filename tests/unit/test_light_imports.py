"""Commands and the public names start without what they do not need."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import helix_jobs

PACKAGE = Path(helix_jobs.__file__).parent
MODEL_LIBRARIES = {"torch", "transformers", "accelerate", "safetensors", "gguf", "torch_directml"}
# Rooms and modules of the engine that import no model library.
TORCH_FREE = ("schedule/*", "text/*", "speculation/depth/*", "speculation/drafters/lookup")
TORCH_FREE += ("speculation/drafters/protocol", "speculation/drafters/registry")
TORCH_FREE += ("loading/draft_spec", "loading/tokenizer_*")
TORCH_FREE += ("chat_options", "constraint", "grammar_text", "grammar/grammars", "matcher", "reasoning")
TORCH_FREE += ("config", "field_checks", "prompt_truncation", "protocol", "request", "request_encoding")
TORCH_FREE += ("sampling_params", "stats", "fake_engine")
NEED_TORCH = {"helix_jobs.engine.speculation.depth.profile"}


def modules_after(script: str, tmp_path: Path) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the script."""
    return {name.split(".")[0] for name in all_modules_after(script, tmp_path)}


def all_modules_after(script: str, tmp_path: Path) -> set[str]:
    """All modules that a fresh interpreter holds after the script; its last line prints them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELIX_")}
    environment |= {"HELIX_HOME": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    tail = "\nimport sys, json; print(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script + tail],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {*MODEL_LIBRARIES, "celery", "numpy", "llguidance", "jsonschema_rs"}


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    "command",
    [
        "submit prompts.jsonl",
        "status",
        "status --json",
        "list",
        "worker --help",
        "bench --help",
        "bench decode --help",
        "bench queue --help",
        "models --help",
        "doctor --help",
    ],
)
def test_commands_start_without_what_they_do_not_need(command, tmp_path):
    """Start-up under half a second is a matter of what is imported, which does not depend on the machine."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    run = f"main({command.split()!r})"
    script = f"from helix_jobs.cli import main\ntry:\n    {run}\nexcept SystemExit as end:\n    assert not end.code"
    assert not modules_after(script, tmp_path) & HEAVY


# What options are made of; the other modules of these rooms read tables and write files.
OF_OPTIONS = {
    *(f"helix_jobs.tables{name}" for name in ("", ".ask", ".columns", ".read_options")),
    *(f"helix_jobs.results{name}" for name in ("", ".columns", ".join_options")),
}


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("command", ["--help", "submit prompts.jsonl", "preview --help", "results --help", "status"])
def test_lines_of_json_are_submitted_without_readers_of_tables(command, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    script = f"from helix_jobs.cli import main\ntry:\n    main({command.split()!r})\nexcept SystemExit: pass"
    loaded = all_modules_after(script, tmp_path)
    assert {name for name in loaded if name.startswith(("helix_jobs.tables", "helix_jobs.results"))} <= OF_OPTIONS
    assert not loaded & {"gzip", "jinja2"}


def test_libraries_of_packed_files_are_imported_for_those_alone(tmp_path):
    assert not modules_after("import helix_jobs.intake.packed", tmp_path) & {"bz2", "lzma", "gzip"}


def test_help_needs_no_database_either(tmp_path):
    script = "from helix_jobs.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert not modules_after(script, tmp_path) & {*HEAVY, "sqlalchemy", "kombu", "rich", "alembic"}


def test_the_public_names_import_without_torch(tmp_path):
    loaded = modules_after("from helix_jobs import HelixClient, SamplingParams", tmp_path)
    assert not loaded & {*HEAVY, "sqlalchemy", "kombu"}


def test_torch_free_modules_of_the_engine_are(tmp_path):
    engine = PACKAGE / "engine"
    names = {
        "helix_jobs.engine." + ".".join(path.relative_to(engine).with_suffix("").parts)
        for pattern in TORCH_FREE
        for path in engine.glob(f"{pattern}.py")
        if path.stem != "__init__"
    }
    assert len(names) > 2 * len(TORCH_FREE)
    script = "\n".join(f"import {name}" for name in sorted(names - NEED_TORCH))
    assert not modules_after(script, tmp_path) & {*MODEL_LIBRARIES, "numpy"}


def test_the_engines_docstring_names_the_modules_that_import_torch(tmp_path):
    """Each module of its own floor is imported where there is no torch; those that fail are the ones it names."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / "engine" / "__init__.py").read_text(encoding="utf-8")))
    named = re.findall(r"``(\w+)``", docstring.partition("import torch")[0])
    modules = sorted(path.stem for path in (PACKAGE / "engine").glob("*.py") if path.stem != "__init__")
    assert set(named) <= set(modules)
    script = f"""
import importlib, sys
sys.modules["torch"] = None  # makes every import of it fail
for name in {modules}:
    try:
        importlib.import_module(f"helix_jobs.engine.{{name}}")
    except ModuleNotFoundError:
        sys.modules[f"failed_{{name}}"] = None
"""
    failed = {name.removeprefix("failed_") for name in modules_after(script, tmp_path) if name.startswith("failed_")}
    assert failed == set(named)


def test_nothing_imports_what_windows_lacks_at_module_level():
    """Late imports behind a platform check are fine."""
    posix_only = {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                found += [(path.name, name) for name in module if name.split(".")[0] in posix_only]
    assert not found
