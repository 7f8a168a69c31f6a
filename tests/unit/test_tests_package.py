"""How tests find each other: as modules of one package, and none of them a test's."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))


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
