"""``pause --worker`` and ``resume --worker`` leave and remove a note, and ``status`` tells of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.worker.rest_note import RestNote, Wish, read_rest_notes, write_rest_note


def test_a_pause_is_noted_told_and_ended(helix, locks):
    result = helix("pause", "--worker", "--now", "--device", "ROCm:1")
    assert result.exit_code == 0, result.output
    assert "The workers on ROCm:1 take no more jobs. Let them go on with: " in result.output
    assert read_rest_notes(locks, Wish.PAUSE) == (RestNote(device="cuda:1", at_once=True),)
    told = helix("status").output
    assert "This machine's workers are paused on cuda:1. End it with: " in told
    assert "No worker is running" not in told
    found = json.loads(helix("status", "--json").output)["resting"]
    assert found == [{"wish": "pause", "device": "cuda:1", "until": None}]
    assert "The workers go on." in helix("resume", "--worker").output
    assert "Nothing to resume" in helix("resume", "--worker").output
    assert "No worker is running" in helix("status").output


def test_both_wishes_are_told_and_those_that_are_over_are_not(helix, locks):
    now = datetime.now(UTC)
    helix("pause", "--worker", "--json")
    write_rest_note(locks, Wish.YIELD, RestNote(until=now + timedelta(days=2)))
    told = helix("status").output
    assert "are paused on every device. End it with: " in told
    assert "leave every device to somebody else until " in told
    write_rest_note(locks, Wish.YIELD, RestNote(until=now - timedelta(seconds=1)))
    assert "somebody else" not in helix("status").output


def test_a_note_that_cannot_be_read_keeps_no_status_from_its_answer(helix, locks):
    (locks / "pause.json").write_text("{")
    assert "No worker is running" in helix("status").output


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause",),
        ("resume",),
        ("pause", "a-batch", "--worker"),
        ("resume", "a-batch", "--worker"),
        ("resume", "--worker", "--release-brakes"),
        ("pause", "a-batch", "--now"),
        ("pause", "a-batch", "--device", "cpu"),
        ("pause", "--worker", "--device", "tpu"),
    ],
)
def test_a_pause_is_of_a_batch_or_of_workers(helix, locks, arguments):
    assert helix(*arguments).exit_code == 2
    assert read_rest_notes(locks, Wish.PAUSE) == ()
