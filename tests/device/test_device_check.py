"""The device check itself, in its tiny form on the CPU: it must not be broken on the day that a GPU is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch

from tests.device.answers import compare_with_itself
from tests.device.device_check import BUDGET, SECTIONS, deadlines
from tests.device.device_models import REAL
from tests.device.section import Check, LeftOutError, Report
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CHECK = ("-m", "tests.device.device_check")
NAMES = [
    "env", "operators", "memory", "exact fp32", "exact half", "sampled", "shortage", "decode", "counts", "prefill",
    "draft", "kernels", "graphs",
]  # fmt: skip
LONGEST_SUMMARY = 12_000


@pytest.mark.thorough
def test_every_section_passes_on_very_small_models(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, *CHECK, "--device", "cpu", "--tiny", "--budget", "900", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == "FAILED: 0"
    assert len(made.stdout) < LONGEST_SUMMARY
    records = {record["section"]: record for record in read(tmp_path / "gpu.jsonl")}
    assert list(records) == NAMES
    assert all(record["failures"] == [] for record in records.values())
    assert [name for name in NAMES if f"[left out] {name} " in made.stdout] == ["kernels", "graphs"]
    assert all(records[name]["left_out"] for name in ("env", "memory", "shortage", "decode", "counts", "kernels"))
    assert "in the second half" in records["shortage"]["out_of_memory_in_200_steps"]


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """One whose sections hold no memory that would have to be looked for."""
    monkeypatch.setattr("tests.device.section.cleanup_memory", lambda _device: None)
    return Check(torch.device("cpu"), tiny=True, file=tmp_path / "gpu.jsonl")


def test_a_section_that_fails_is_shown_and_passed_over(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_check: Check, report: Report) -> None:
        report.figures["known"] = 3
        raise ValueError("a bug")

    def takes_too_long(_check: Check, report: Report) -> None:
        report.expect("one is two", holds=False)
        time.sleep(60)

    def cannot(_check: Check, _report: Report) -> None:
        raise LeftOutError("no such part")

    check.run("broken", time.monotonic() + 60, fails)
    check.run("slow", time.monotonic() + 0.2, takes_too_long)
    check.run("late", time.monotonic(), fails)
    check.run("other", time.monotonic() + 60, cannot)
    records = read(check.file)
    assert [record["section"] for record in records] == ["broken", "slow", "late", "other"]
    assert (records[0]["known"], "a bug" in records[0]["traceback"]) == (3, True)
    assert records[1]["failures"] == ["one is two", "not done within 0 s"]
    assert records[2]["failures"] == ["no time left"]
    assert (records[3]["failures"], records[3]["left_out"]) == ([], ["no such part"])
    assert len(check.failures) == 4
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith("[")] == [
        ["[FAILED]", "broken"], ["[FAILED]", "slow"], ["[FAILED]", "late"], ["[left", "out]"],
    ]  # fmt: skip
    assert "    - no such part" in shown


def test_the_summary_stays_short_when_everything_fails(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_check: Check, report: Report) -> None:
        for number in range(9):
            report.figures[f"figure {number}"] = "long " * 200
            report.expect("wrong " * 200, holds=False)
            report.leave_out("much " * 200, "never " * 200)

    for name in NAMES:
        check.run(name, time.monotonic() + 60, fails)
    table = 31 * len("Llama-3.1-8B B=256 context=1024 | 99999.99 | 99999.99 | 100%\n")
    assert len(capsys.readouterr().out) + table < LONGEST_SUMMARY


def test_all_sections_together_stay_within_the_budget() -> None:
    shares = [share for _, share, _ in SECTIONS]
    assert [name for name, _, _ in SECTIONS] == NAMES
    assert sum(shares) == BUDGET == 330
    assert deadlines(shares, BUDGET)[-1] == pytest.approx(BUDGET)
    assert deadlines([1, 3], 100) == [25, 100]


def test_a_model_that_does_not_fit_is_left_out_and_a_smaller_one_taken(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report()
    monkeypatch.setattr("tests.device.section.free_memory", lambda _device: 12 * 10**9)
    assert check.fitting(report, 2.5, REAL.large, REAL.one) is REAL.one
    assert report.left_out == ["Llama-3.1-8B: it takes 20.1 GB here, 12.0 are free"]
    with pytest.raises(LeftOutError):
        check.fitting(report, 30, REAL.large, REAL.one)
    monkeypatch.setattr("tests.device.section.free_memory", lambda _device: None)
    assert check.fitting(report, 30, REAL.large) is REAL.large


@pytest.mark.parametrize(("same", "promised", "failures"), [(4, True, 0), (3, True, 1), (3, False, 0)])
def test_other_company_is_a_verdict_where_it_is_promised(same: int, failures: int, *, promised: bool) -> None:
    report = Report()
    compare_with_itself(report, "alone", same, 4, promised=promised)
    assert report.figures["alone"] == f"{same}/4"
    assert len(report.failures) == failures


def test_models_have_the_size_of_those_they_are_named_after() -> None:
    # Parameters in millions, as published; biases, which ours have none of, are less than a thousandth.
    published = {REAL.small: 134.5, REAL.one: 1235.8, REAL.draft: 494.0, REAL.large: 8030.3}
    for shape, millions in published.items():
        assert shape.num_parameters / 1e6 == pytest.approx(millions, rel=1e-3), shape.name
