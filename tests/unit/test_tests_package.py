"""How tests find each other: as modules of one package, none of them a test's. And what names their cases."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
CHANGES = re.compile(
    r"(uuid\.)?uuid[14]|time\.(time|monotonic|perf_counter)(_ns)?|time_ns|(\w+\.)*(now|utcnow|today)|os\.(urandom|getpid)"
    r"|(random|secrets)\.\w+|id|hash"
)


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules it names in an import, wherever that stands; with ``from x import y`` both x and x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here are absolute"
            yield from (str(node.module), *(f"{node.module}.{one.name}" for one in node.names))


def breaches(tree: ast.Module) -> Iterator[str]:
    """Imports of tests, and what would let a module be found by another way than from the repository's root."""
    for name in imported(tree):
        if name == "conftest" or name.startswith("test_") or (name.startswith("tests.") and ".test_" in name):
            yield f"imports {name}"
        elif (TESTS / f"{name}.py").is_file():
            yield f"imports {name}, not tests.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield "uses sys.path"


def test_no_test_imports_a_test_and_none_changes_where_modules_are_found() -> None:
    found = {
        str(file.relative_to(TESTS)): said
        for file in FILES
        if (said := list(breaches(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert not found


def changing(tree: ast.Module) -> Iterator[str]:
    """Calls within a decorator whose value is another in each process: a case named by it is another test for each
    of pytest-xdist's workers, which then run none at all."""
    decorators = (
        decorator
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for decorator in node.decorator_list
    )
    for call in (node for decorator in decorators for node in ast.walk(decorator) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        # gzip writes the hour into its header
        undated = called in {"gzip.compress", "gzip.GzipFile"} and all(word.arg != "mtime" for word in call.keywords)
        if undated or CHANGES.fullmatch(called):
            yield f"line {call.lineno}: {ast.unparse(call)}"


def test_no_case_of_a_test_is_named_by_the_hour_or_by_chance() -> None:
    found = {
        str(file.relative_to(TESTS)): said
        for file in FILES
        if (said := list(changing(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert not found


@pytest.mark.parametrize("made", ["gzip.compress(b'')", "uuid.uuid4()", "uuid4().hex", "time.time()", "os.urandom(4)"])
def test_a_name_by_the_hour_or_by_chance_is_seen(made: str) -> None:
    assert list(changing(ast.parse(f"@pytest.mark.parametrize('x', [({made}, 1)])\ndef test(): pass")))


def test_every_folder_is_a_package() -> None:
    assert not {file.parent for file in FILES if not file.with_name("__init__.py").is_file()}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.unit.test_one import NAME",
        "from tests.unit import test_one",
        "def f():\n    import tests.unit.test_one",
        "from test_one import NAME",
        "from worker_box import ROOT",
        "import sys\nsys.path.append('x')",
    ],
)
def test_a_breach_is_seen(source: str) -> None:
    assert list(breaches(ast.parse(source)))
