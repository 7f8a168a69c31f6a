from __future__ import annotations

import json

import pytest

from helix_jobs.doctor import diagnosis
from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.engine.devices.operator_checks import OperatorStatus, OperatorVerdict

OK = Verdict("torch", Level.OK, "9.9")
BAD = Verdict("device in use", Level.FAILED, "no such \x1b[31mdevice", "buy one")
OPERATORS = (
    OperatorVerdict("silu", "activation", "float32", OperatorStatus.OK, ""),
    OperatorVerdict("silu", "activation", "float16", OperatorStatus.DIFFERS, "off by 1"),
)


@pytest.fixture
def seen(monkeypatch):
    """What the command asked for; the diagnosis itself has tests of its own."""
    asked = []
    answers = {"cpu": ((OK,), ()), "cuda": ((OK, BAD), OPERATORS)}

    def diagnose(settings):
        asked.append(settings)
        return diagnosis.Diagnosis(*answers[settings.device])

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)
    return asked


def test_a_healthy_machine(helix, seen):
    result = helix("doctor", "--device", "cpu")
    assert result.exit_code == 0
    assert "OPERATOR" not in result.output
    assert result.output.endswith("Helix can work here.\n")


def test_a_failure_is_shown_with_its_remedy_and_the_exit_code_is_1(helix, seen):
    result = helix("doctor", env={"HELIX_DEVICE": "cuda"})
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].split() == ["OPERATOR", "USED", "FOR", "FLOAT32", "FLOAT16"]
    assert lines[1].split() == ["silu", "activation", "ok", "differs:", "off", "by", "1"]
    assert any(line.split()[:4] == ["device", "in", "use", "failed"] for line in lines)
    assert any(line.strip() == "-> buy one" for line in lines)
    assert "\x1b" not in result.output


def test_the_flag_goes_before_the_setting(helix, seen):
    helix("doctor", "--device", "cpu", env={"HELIX_DEVICE": "cuda"})
    assert seen[0].device == "cpu"


def test_json(helix, seen):
    result = helix("doctor", "--device", "cuda", "--json")
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["healthy"] is False
    assert told["verdicts"][1] == {
        "subject": "device in use",
        "level": "failed",
        "finding": BAD.finding,
        "remedy": "buy one",
    }
    assert told["operators"][1]["status"] == "differs"


def test_an_unknown_device_is_said_in_the_table(helix):
    result = helix("doctor", "--device", "abacus")
    assert result.exit_code == 1
    assert "device 'abacus' is unknown" in result.output
