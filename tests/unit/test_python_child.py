"""Python children of Helix run Helix, not what lies in the working directory."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

import helix_jobs
from helix_jobs.python_child import python_command

PACKAGE = Path(helix_jobs.__file__).parent
# The one place that makes such command lines; and the option that offers this interpreter as a peer's, whose script is
# named by its path and so brings its own folder only.
MAY_NAME_IT = {"python_child.py", "cli/bench/options.py"}


def names_of(source: str) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute | ast.Name)}


def test_nobody_else_makes_a_command_line_of_this_interpreter():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if {"sys.executable", "executable"} & names_of(path.read_text(encoding="utf-8"))
    }
    assert users == MAY_NAME_IT


@pytest.mark.parametrize("arguments", [("-m", "timeit", "-n1", "-r1"), ("-c", "import queue, random")])
def test_the_working_directory_is_not_where_modules_come_from(tmp_path, arguments):
    for name in ("queue", "random", "itertools", "time", "timeit", "celery", "redis"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit({name!r} + ' of the working directory')\n")
    done = subprocess.run(python_command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
