"""Rooms, and the arrows between them: which room may import which. Late and type-checking imports count as well."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import helix_jobs
from tests.engine_values import ENGINE_VALUES

PACKAGE = Path(helix_jobs.__file__).parent

# Modules at the root, which every room may import, and what they may import of each other.
FOUNDATIONS = {
    "answer_key": set(),
    "child_process": set(),
    "device_names": {"errors"},
    "endpoint_url": {"errors"},
    "_version": set(),
    "bounds": set(),
    "brakes": {"errors", "wording"},
    "errors": set(),
    "exhaustion": set(),
    "files": {"errors"},
    "json_depth": set(),
    "json_line": set(),
    "local_users": {"files", "locks"},
    "locks": {"errors", "files"},
    "new_job": set(),
    "notify_settings": {"errors", "setting"},
    "opening_hours": {"errors"},
    "output_file": {"errors", "files"},
    "plain_text": set(),
    "python_child": set(),
    "redaction": set(),
    "database_url": {"errors"},
    "redis_url": {"errors", "redaction"},
    "setting": {"errors"},
    "token_counts": set(),
    "token_logprobs": set(),
    "settings": {
        "bounds",
        "endpoint_url",
        "errors",
        "files",
        "notify_settings",
        "opening_hours",
        "database_url",
        "redis_url",
        "setting",
        "yield_when",
    },
    "time_limits": {"errors"},
    "wording": set(),
    "yield_when": {"errors"},
    "helix_jobs": {"_version", "client", "values"},  # the public names, imported when they are first used
    "__main__": {"cli"},
}
# Room -> rooms it may import. "engine" is the floor between the engine's rooms, "values" the modules above.
ARROWS = {
    "observability": set(),
    "storage": {"observability"},
    "broker": {"observability", "storage"},
    "notify": {"storage"},
    "acceptance": set(),
    "forecast": {"values"},
    "intake": {"acceptance", "values"},
    "outlook": {"forecast", "storage", "values"},
    "tables": {"engine.text", "intake"},
    "results": {"intake", "storage", "tables"},
    "reports": {"storage"},
    "client": {
        *("acceptance", "broker", "forecast", "intake", "observability", "outlook", "results", "storage", "tables"),
        "values",
    },
    "api": {"broker", "client", "forecast", "intake", "notify", "outlook", "reports", "results", "storage", "values"},
    "worker": {
        *("acceptance", "broker", "engine.loading", "engine.text", "forecast", "intake", "notify", "observability"),
        *("outlook", "storage", "values"),
    },
    "doctor": {"broker", "client", "engine.devices", "engine.kernels", "engine.loading", "storage", "values"},
    "bench": {
        *("broker", "client", "engine", "forecast", "intake", "results", "storage", "values"),
        *("engine.devices", "engine.grammar", "engine.loading", "engine.model", "engine.speculation", "engine.text"),
    },
    "cli": {
        *("acceptance", "api", "bench", "client", "doctor", "engine.devices", "engine.loading", "forecast"),
        *("notify", "observability", "outlook"),
        *("reports", "results", "storage", "tables", "values", "worker"),
    },
}
ARROWS |= {
    "values": set(),
    "engine.devices": set(),
    "engine.grammar": {"engine.text", "values"},
    "engine.schedule": {"engine.sampling", "values"},
    "engine.sampling": {"values"},
    "engine.text": {"engine.schedule", "values"},
    "engine.attention": {"engine.devices", "values"},
    "engine.recurrence": {"engine.attention", "engine.devices", "values"},
    "engine.kernels": {"engine.attention", "engine.model", "engine.weights", "values"},
    "engine.weights": set(),
    "engine.model": {"engine.attention", "engine.devices", "engine.recurrence", "engine.weights", "values"},
    "engine.speculation": {
        *("engine.attention", "engine.devices", "engine.model", "engine.sampling", "engine.schedule", "values"),
    },
    "engine.endpoint": {"engine", "engine.grammar", "engine.sampling", "engine.schedule", "engine.text", "values"},
    "engine.loading": {
        *("engine.attention", "engine.devices", "engine.kernels", "engine.model", "engine.speculation", "engine.text"),
        *("engine.endpoint", "engine.grammar", "engine.recurrence", "engine.weights", "engine", "values"),
    },
    "engine": {
        *("engine.devices", "engine.grammar", "engine.model", "engine.sampling", "engine.schedule"),
        *("engine.speculation", "engine.text"),
        "values",
    },
}
# Libraries that only these rooms import, wherever in a module; "engine" stands for all of the engine's rooms. Nobody
# imports those without a room: torch_directml is there on some machines only, and is looked for by its name.
LIBRARIES = {
    "accelerate": set(),
    "torch_directml": set(),
    "torch": {"bench", "doctor", "engine"},
    "transformers": {"bench", "engine"},
    "safetensors": {"engine"},
    "gguf": {"engine"},
    "httpx2": {"engine"},
    "llguidance": {"bench", "engine", "intake", "values"},
    "numpy": {"bench", "engine", "values"},
    "sqlalchemy": {"api", "bench", "client", "doctor", "outlook", "storage", "worker"},
    "alembic": {"storage"},
    "apprise": {"notify"},
    "psycopg": {"storage"},
    "celery": {"bench", "broker", "observability"},
    "kombu": {"broker"},
    "redis": {"bench", "broker", "worker"},
    "click": {"cli"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "python_multipart": {"api"},
    "regex": {"api"},
    "uvicorn": {"api"},
    "jsonschema_rs": {"acceptance"},
    "rich": {"cli"},
    "textual": {"cli"},
}


def modules() -> dict[str, Path]:
    """Module name -> its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("helix_jobs", *path.relative_to(PACKAGE).with_suffix("").parts)
        if "_migrations" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """``helix_jobs.engine.model.decoder`` -> ``engine.model``; a module at the root -> its own name."""
    parts = module.split(".")[1:]
    if MODULES[module].name != "__init__.py" and len(parts) > 1:
        last = parts.pop()
        if parts == ["engine"] and last in ENGINE_VALUES:
            return "values"
    if parts[:1] == ["engine"]:
        return ".".join(parts[:2])
    return parts[0] if parts else "helix_jobs"


def imported_by(source: str) -> set[str]:
    """Modules of Helix that a source imports: anywhere in it, also for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import; this test reads absolute names"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.update(
                    {whole, node.module or ""} & MODULES.keys() - ({node.module} if whole in MODULES else set())
                )
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & MODULES.keys()


def libraries_of(source: str) -> set[str]:
    """Top-level names of what a source imports, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
    return found


# Read when a test asks: each process of a run with pytest-xdist imports this file, and one of them runs its tests.
@cache
def imports(module: str) -> set[str]:
    return imported_by(MODULES[module].read_text(encoding="utf-8"))


@cache
def libraries(module: str) -> set[str]:
    return libraries_of(MODULES[module].read_text(encoding="utf-8"))


def room_or_floor(module: str) -> str:
    """As ``room_of``, with one name for all rooms of the engine."""
    return "engine" if module.startswith("helix_jobs.engine") else room_of(module)


def arrows() -> dict[tuple[str, str], str]:
    """From room and to room -> one import that makes the arrow."""
    return {
        (room_of(module), room_of(found)): f"{module} imports {found}"
        for module in MODULES
        for found in imports(module)
        if room_of(module) != room_of(found)
    }


TABLE = {(room, other) for room, others in (FOUNDATIONS | ARROWS).items() for other in others}
EVERYBODYS = FOUNDATIONS.keys() - {"helix_jobs", "__main__"}


def test_late_and_type_checking_imports_are_seen():
    source = """
import os.path
if TYPE_CHECKING:
    import torch
    from helix_jobs.storage.database import Database
else:
    from helix_jobs import errors
def late():
    import helix_jobs.files
    from celery.app import Celery
    try:
        from helix_jobs.storage import claims, no_module
    except ImportError:
        import redis.asyncio as client
"""
    names = ("errors", "files", "storage", "storage.claims", "storage.database")
    assert imported_by(source) == {f"helix_jobs.{name}" for name in names}
    assert libraries_of(source) == {"os", "torch", "celery", "redis", "helix_jobs"}


def test_every_room_stands_in_the_table():
    assert {room_of(module) for module in MODULES} == {*FOUNDATIONS, *ARROWS}


@pytest.mark.thorough
def test_a_room_imports_what_the_table_allows():
    allowed = TABLE | {(room, foundation) for room in ARROWS for foundation in EVERYBODYS}
    assert not {arrow: why for arrow, why in arrows().items() if arrow not in allowed}


def test_every_arrow_of_the_table_is_there():
    gone = TABLE - arrows().keys()
    assert not gone


def test_arrows_run_one_way():
    TopologicalSorter(FOUNDATIONS | ARROWS).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library):
    users = {room_of(module).split(".")[0] for module in MODULES if library in libraries(module)}
    assert users == LIBRARIES[library]


def test_a_bench_of_the_queue_needs_no_engine():
    queue = {module for module in MODULES if module.startswith("helix_jobs.bench.queue")}
    shared = {"helix_jobs.bench.percentiles", "helix_jobs.bench.processor"}
    assert queue
    for module in queue:
        assert not libraries(module) & {"torch", "transformers", "numpy"}
        assert not [
            found for found in imports(module) - queue - shared if room_of(found).startswith(("bench", "engine"))
        ]


@pytest.mark.parametrize("library", ["sqlalchemy", "celery", "redis"])
def test_only_the_bench_of_the_queue_imports_what_the_queue_is_made_of(library):
    users = {module for module in MODULES if room_of(module) == "bench" and library in libraries(module)}
    assert users
    assert all(module.startswith("helix_jobs.bench.queue.") for module in users), users


def test_peers_know_nothing_of_helix():
    """Other interpreters run them."""
    peers = {module for module in MODULES if module.startswith("helix_jobs.bench.peers.")}
    assert peers
    assert not set().union(*(imports(module) for module in peers))
