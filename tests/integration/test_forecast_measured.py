"""``helix bench forecast`` with a real worker of the fake engine, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helix_jobs.bench.forecast_bench import Calibration, Guess
from helix_jobs.bench.forecast_shapes import SHAPES
from helix_jobs.forecast.forecast import Forecast

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_batches_are_forecast_run_and_compared(short_tmp):
    done = subprocess.run(
        [sys.executable, "-m", "helix_jobs", "bench", "forecast", "--shapes", "2", "--rows", "40", "--json"],
        cwd=ROOT,
        env={
            **os.environ,
            "TMPDIR": str(short_tmp),
            "HELIX_HOME": str(short_tmp / "home"),
            "HELIX_ENGINE": "fake",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(short_tmp.glob("hx-bench-*"))
    report = json.loads(done.stdout)
    assert [case["name"] for case in report["cases"]] == ["tasks", "tasks, int8 draft"]
    assert [case["rows"] for case in report["cases"]] == [40, 24]
    assert report["start"]["batches"] == 2
    for case in report["cases"]:
        start = case["start"]
        assert 0 < start["low"] <= start["median"] <= start["high"]
        assert start["truth"] > 0


def test_a_guess_is_right_where_the_truth_lies_in_its_range():
    found = Forecast((8.0, 9.0, 10.0, 11.0, 12.0))
    right, wrong = Guess.of(found, 10.0, 21.0), Guess.of(found, 10.0, 40.0)
    assert (right.median, right.is_inside, wrong.is_inside) == (20.0, True, False)
    assert wrong.error == pytest.approx(-0.5)
    calibration = Calibration.of([right, wrong])
    assert calibration is not None
    assert (calibration.batches, calibration.inside) == (2, 0.5)
    assert Calibration.of([]) is None


def test_shapes_differ_and_are_the_same_every_time():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 20
    assert {shape.engine.draft for shape in SHAPES} == {"none", "int8", "lookup"}
    assert {shape.has_schema for shape in SHAPES} == {True, False}
    prompts = set()
    for seed, shape in enumerate(SHAPES, start=1):
        rows = shape.rows(20, seed)
        assert rows == shape.rows(20, seed)
        prompts |= {json.dumps(row["messages"]) for row in rows}
    assert len(prompts) == sum(len(shape.rows(20, seed)) for seed, shape in enumerate(SHAPES, start=1))
