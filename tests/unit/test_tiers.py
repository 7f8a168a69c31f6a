"""The fast suite and the thorough one have every test between them, and none twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import spread

ROOT = Path(__file__).parents[2]
SUITES = {"fast": (), "thorough": ("-m", "thorough"), "both": ("-m", "not slow and not soak")}


@pytest.mark.parametrize(("cases", "fast"), [(1, 1), (2, 1), (7, 3), (442, 21), (5, 5), (3, 9)])
def test_so_many_cases_are_fast_and_no_part_of_them_is_left_out(cases: int, fast: int) -> None:
    chosen = sorted(spread("some test", cases, fast))
    assert len(chosen) == min(cases, fast)
    gaps = [later - earlier for earlier, later in zip(chosen, [*chosen[1:], chosen[0] + cases], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_of_two_databases_now_one_is_fast_and_now_the_other() -> None:
    assert {next(iter(spread(f"test_{number}", 2, 1))) for number in range(20)} == {0, 1}


def test_each_test_is_in_one_suite(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_quick(): pass\n"
        "@pytest.mark.thorough\n"
        "@pytest.mark.parametrize('x', range(3))\n"
        "def test_long(x): pass\n"
        "@pytest.mark.thorough(fast=2)\n"
        "@pytest.mark.parametrize('x', range(7))\n"
        "def test_many(x): pass\n"
        "@pytest.mark.thorough(fast=1)\n"
        "@pytest.mark.parametrize('x', [1, 2, pytest.param(3, marks=pytest.mark.slow)])\n"
        "def test_some_slow(x): pass\n",
        encoding="utf-8",
    )
    found = {
        name: set(_collected("-p", "tests.conftest", *arguments, str(tmp_path))) for name, arguments in SUITES.items()
    }
    assert found["fast"] | found["thorough"] == found["both"]
    assert not found["fast"] & found["thorough"]
    assert (len(found["fast"]), len(found["thorough"])) == (4, 9)


def _collected(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-c", str(ROOT / "pyproject.toml"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.rsplit("/", 1)[-1] for line in done.stdout.splitlines() if "::" in line]
