"""Dependencies run one way: cli -> jobs -> engine; and commands start without what they do not need."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import helix_jobs

PACKAGE = Path(helix_jobs.__file__).parent
TORCH_FREE = {"sampling_params", "request", "protocol", "config", "stats", "stop_strings"}
TORCH_FREE |= {"prefix_cache", "block_table", "sequence", "admission", "scheduler"}
TORCH_FREE |= {"bounded_child", "library_panics", "tokenizer_process", "tokenizer_trial"}
TORCH_FREE |= {"bounded_process", "byte_tokens", "chat_template", "prompt_encoder", "prompt_process", "text"}
TORCH_FREE |= {"step_costs", "draft_acceptance", "depth_plan", "speculation_depth"}
# What jobs may import of the engine anywhere; the rest only worker_service and engine_choice.
SHARED = {f"helix_jobs.engine.{name}" for name in ("sampling_params", "request", "protocol")}
ENGINE_USERS = {"helix_jobs.worker.service", "helix_jobs.engine.open_engine"}
MODEL_LIBRARIES = {"torch", "transformers", "accelerate", "safetensors", "gguf", "torch_directml"}


def imports_of(source: str, package: str) -> set[str]:
    """Modules a source imports at run time, late imports included; ``if TYPE_CHECKING:`` is not run time."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, (*package.split(".")[: 1 - node.level or None], base)))
            found.update({base} | {f"{base}.{alias.name}" for alias in node.names})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def all_imports() -> dict[str, set[str]]:
    """Module name -> what it imports, of Helix's own only real modules."""
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("helix_jobs", *path.relative_to(PACKAGE).with_suffix("").parts)
        if "_migrations" not in parts:
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            package = name if parts[-1] == "__init__" else ".".join(parts[:-1])
            sources[name] = (path.read_text(encoding="utf-8"), package)
    imports = {name: imports_of(source, package) for name, (source, package) in sources.items()}
    return {
        name: {found for found in modules if not found.startswith("helix_jobs.") or found in sources}
        for name, modules in imports.items()
    }


IMPORTS = all_imports()


def part(module: str) -> str:
    """``helix_jobs.engine.sampling.sampler`` -> ``engine``."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "helix_jobs" and len(pieces) > 1 else ""


def breaches(importers: str, forbidden) -> list[str]:
    """Imports of modules in part ``importers`` for which ``forbidden(importer, imported)`` holds."""
    return [
        f"{module} imports {found}"
        for module, modules in sorted(IMPORTS.items())
        if part(module) == importers
        for found in sorted(modules)
        if forbidden(module, found)
    ]


def root(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_the_parser_sees_late_imports_and_skips_type_checking():
    source = """
import os.path
if TYPE_CHECKING:
    import torch
else:
    import json
def late():
    from helix_jobs.storage import leases
    from . import sibling
    from ..engine import sampler
"""
    assert imports_of(source, "helix_jobs.cli") == {
        *("os.path", "json", "helix_jobs.storage", "helix_jobs.storage.leases"),
        *("helix_jobs.cli", "helix_jobs.cli.sibling", "helix_jobs.engine", "helix_jobs.engine.sampling.sampler"),
    }


def test_the_package_was_found():
    parts = {part(module) for module in IMPORTS}
    assert {"cli", "jobs", "engine", "observability", "errors", "settings"} <= parts
    assert "helix_jobs.storage.store" in IMPORTS["helix_jobs.client.client"]


def test_the_engine_knows_nothing_of_jobs():
    outside = {"celery", "kombu", "sqlalchemy", "alembic", "redis", "psycopg", "click", "rich"}
    assert not breaches(
        "engine", lambda _, found: part(found) in {"cli", "jobs", "observability", "bench"} or root(found) in outside
    )


def test_jobs_reach_the_engine_only_through_the_worker():
    def forbidden(importer: str, found: str) -> bool:
        if part(found) == "cli" or root(found) in MODEL_LIBRARIES or root(found) in {"click", "rich"}:
            return True
        bare = found == "helix_jobs.engine"  # the package itself is torch-free
        return part(found) == "engine" and not bare and found not in SHARED and importer not in ENGINE_USERS

    assert not breaches("jobs", forbidden)


def test_commands_see_of_the_engine_only_the_sampling_parameters():
    def forbidden(_: str, found: str) -> bool:
        own = found in {"helix_jobs.engine", "helix_jobs.engine.sampling_params"}
        return (part(found) == "engine" and not own) or root(found) in {*MODEL_LIBRARIES, "celery", "kombu"}

    assert not breaches("cli", forbidden)


def test_a_bench_stands_on_the_engine_and_only_commands_know_it():
    def forbidden(importer: str, found: str) -> bool:
        if importer.startswith("helix_jobs.bench.queue"):
            return False  # has a rule of its own
        # It reads the same lines as submit, and needs nothing else of the queue.
        queue = part(found) == "jobs" and found not in {"helix_jobs.jobs", "helix_jobs.intake.lines"}
        return (
            queue or part(found) in {"cli", "observability"} or root(found) in {"celery", "sqlalchemy", "click", "rich"}
        )

    assert not breaches("bench", forbidden)
    for importers in ("engine", "jobs", "observability", "errors", "settings"):
        assert not breaches(importers, lambda _, found: part(found) == "bench")


def test_the_bench_of_the_queue_needs_no_engine():
    def forbidden(importer: str, found: str) -> bool:
        if not importer.startswith("helix_jobs.bench.queue"):
            return False
        others = part(found) == "bench" and not found.startswith(
            ("helix_jobs.bench.queue", "helix_jobs.bench.percentiles", "helix_jobs.bench.processor")
        )
        heavy = root(found) in {*MODEL_LIBRARIES, "click", "rich"}
        bare = found in {"helix_jobs.bench", "helix_jobs.jobs"}
        return not bare and (others or heavy or part(found) in {"cli", "engine", "observability"})

    assert not breaches("bench", forbidden)


def test_only_commands_know_the_doctor():
    assert not breaches("doctor", lambda _, found: part(found) in {"cli", "bench"} or root(found) in {"click", "rich"})
    for importers in ("engine", "jobs", "observability", "errors", "settings", "bench"):
        assert not breaches(importers, lambda _, found: part(found) == "doctor")


def test_peers_know_nothing_of_helix():
    assert not [
        f"{module} imports {found}"
        for module, modules in IMPORTS.items()
        if module.startswith("helix_jobs.bench.peers.")
        for found in modules
        if root(found) == "helix_jobs"
    ]


@pytest.mark.parametrize("importers", ["errors", "settings", "observability"])
def test_foundations_stand_on_nothing(importers):
    parts = {"cli", "jobs", "engine", "bench"}
    assert not breaches(importers, lambda _, found: part(found) in parts or root(found) in MODEL_LIBRARIES)


def test_inside_the_engine_nothing_looks_back_at_the_scheduler():
    lower = {"block_table", "kv_cache", "sampler", "verification", "attention", "random_numbers"}

    def forbidden(importer: str, found: str) -> bool:
        name = importer.removeprefix("helix_jobs.engine.")
        below = name in lower or name.startswith("drafters")
        upper = {
            "helix_jobs.engine.schedule.scheduler",
            "helix_jobs.engine.engine",
            "helix_jobs.engine.speculation.speculative",
        }
        return (below and found in upper) or (name == "block_table" and found == "helix_jobs.engine.model.kv_cache")

    assert not breaches("engine", forbidden)


def modules_after(script: str, tmp_path: Path) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the script; its last line prints them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELIX_")}
    environment |= {"HELIX_HOME": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    tail = "\nimport sys, json; print(); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
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


HEAVY = {*MODEL_LIBRARIES, "celery", "numpy"}


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
        "doctor --help",
    ],
)
def test_commands_start_without_what_they_do_not_need(command, tmp_path):
    """Start-up under half a second is a matter of what is imported, which does not depend on the machine."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    run = f"main({command.split()!r})"
    script = f"from helix_jobs.cli import main\ntry:\n    {run}\nexcept SystemExit as end:\n    assert not end.code"
    assert not modules_after(script, tmp_path) & HEAVY


def test_help_needs_no_database_either(tmp_path):
    script = "from helix_jobs.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert not modules_after(script, tmp_path) & {*HEAVY, "sqlalchemy", "kombu", "rich", "alembic"}


def test_the_public_names_import_without_torch(tmp_path):
    loaded = modules_after("from helix_jobs import HelixClient, SamplingParams", tmp_path)
    assert not loaded & {*HEAVY, "sqlalchemy", "kombu"}


def test_torch_free_engine_modules_are(tmp_path):
    present = sorted(name for name in TORCH_FREE if f"helix_jobs.engine.{name}" in IMPORTS)
    assert {"sampling_params", "request", "protocol", "config"} <= set(present)
    script = "\n".join(f"import helix_jobs.engine.{name}" for name in present)
    assert not modules_after(script, tmp_path) & {*MODEL_LIBRARIES, "numpy"}


def test_nothing_imports_what_windows_lacks_at_module_level():
    """Late imports behind a platform check are fine."""
    posix_only = {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [(path.name, name) for name in imports_of(ast.unparse(node), "x") if root(name) in posix_only]
    assert not found
