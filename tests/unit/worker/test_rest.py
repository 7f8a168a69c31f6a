"""When a worker must rest: somebody wants its device, or the hours say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.opening_hours import OpeningHours
from helix_jobs.worker import rest_note
from helix_jobs.worker.device_lock import DeviceLock, is_held
from helix_jobs.worker.rest import RestRules
from helix_jobs.worker.rest_note import RestNote, Wish, read_rest_notes, remove_rest_note, write_rest_note
from helix_jobs.worker.stop_requests import StopRequests

if TYPE_CHECKING:
    from pathlib import Path

NIGHT = OpeningHours.parse("22:00-07:00 UTC")
NOON = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 30, 0, 0, tzinfo=UTC)


def test_a_worker_rests_outside_its_hours(tmp_path: Path) -> None:
    rules = RestRules(NIGHT, "cuda:0", tmp_path)
    rest = rules.rest(NOON)
    assert rest is not None
    assert rest.until == datetime(2026, 11, 30, 22, 0, tzinfo=UTC)
    assert rest.in_words.startswith("outside its hours (HELIX_HOURS), until Mon 2026-11-30 ")
    assert not rest.at_once
    assert rules.rest(MIDNIGHT) is None
    assert RestRules(None, "cuda:0", tmp_path).rest(NOON) is None


@pytest.mark.parametrize("device", [None, "cuda:0", "cuda"])
def test_a_note_keeps_workers_off_the_device_it_names(tmp_path: Path, device: str | None) -> None:
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device=device, at_once=True))
    rest = RestRules(NIGHT, "cuda:0", tmp_path).rest(MIDNIGHT)
    assert rest is not None
    assert (rest.until, rest.at_once) == (None, True)
    assert rest.in_words == "somebody else has the device (helix yield)"


@pytest.mark.parametrize("device", ["cuda:1", "cpu", "cud"])
def test_a_note_for_another_device_changes_nothing(tmp_path: Path, device: str) -> None:
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device=device))
    assert RestRules(NIGHT, "cuda:0", tmp_path).rest(MIDNIGHT) is None


def test_a_note_ends_by_itself_or_when_it_is_removed(tmp_path: Path) -> None:
    rules = RestRules(None, "cpu", tmp_path)
    write_rest_note(tmp_path, Wish.YIELD, RestNote(until=NOON + timedelta(hours=1)))
    assert rules.rest(NOON) is not None
    assert rules.rest(NOON + timedelta(hours=1)) is None
    write_rest_note(tmp_path, Wish.YIELD, RestNote())  # the latest counts
    assert rules.rest(NOON + timedelta(days=400)) is not None
    assert remove_rest_note(tmp_path, Wish.YIELD)
    assert not remove_rest_note(tmp_path, Wish.YIELD)
    assert rules.rest(NOON) is None


def test_each_device_has_a_note_of_its_own(tmp_path: Path) -> None:
    """Who asks for a second device does not give the first one back."""
    first, second = (RestRules(None, device, tmp_path) for device in ("cuda:0", "cuda:1"))
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device="cuda:0"))
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device="cuda:1", until=NOON + timedelta(days=900), at_once=True))
    (resting, other) = (first.rest(NOON), second.rest(NOON))
    assert resting is not None
    assert other is not None
    assert [(one.until, one.at_once) for one in (resting, other)] == [(None, False), (NOON + timedelta(days=900), True)]
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device="cuda:1", until=NOON + timedelta(days=800)))
    assert [note.device for note in read_rest_notes(tmp_path, Wish.YIELD)] == ["cuda:0", "cuda:1"]
    other = second.rest(NOON)
    assert other is not None
    assert (other.until, other.at_once) == (NOON + timedelta(days=800), False), "the later one for a device counts"
    write_rest_note(tmp_path, Wish.YIELD, RestNote(device="cuda", until=NOON + timedelta(days=850)))
    other = second.rest(NOON)
    assert other is not None
    assert other.until == NOON + timedelta(days=850), "it rests until the last of them ends"
    assert remove_rest_note(tmp_path, Wish.YIELD)
    assert first.rest(NOON) is second.rest(NOON) is None


def test_a_note_that_is_over_goes_with_the_next(tmp_path: Path) -> None:
    write_rest_note(tmp_path, Wish.PAUSE, RestNote(device="cuda:0", until=datetime(2020, 1, 1, tzinfo=UTC)))
    write_rest_note(tmp_path, Wish.PAUSE, RestNote(device="cuda:1"))
    assert [note.device for note in read_rest_notes(tmp_path, Wish.PAUSE)] == ["cuda:1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"notes": 3}',
        b'{"notes": [3]}',
        b'{"notes": [{}]}',
        b'{"notes": [{"device": null, "until": "tomorrow", "at_once": false}]}',
        b'{"notes": [{"device": null, "until": "2099-01-01T00:00:00", "at_once": false}]}',
        b'{"notes": [{"device": null, "until": 7, "at_once": false}]}',
    ],
)
def test_a_file_that_is_no_note_is_nobodys_wish(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """It keeps no worker from working, and has none that rests take the device."""
    note = tmp_path / "yield.json"
    write_rest_note(tmp_path, Wish.YIELD, RestNote())
    resting = RestRules(None, "cpu", tmp_path)
    assert resting.rest(NOON) is not None
    note.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"yield\.json is no note of helix yield; .*, or remove the file"):
        read_rest_notes(tmp_path, Wish.YIELD)
    assert RestRules(None, "cpu", tmp_path).rest(NOON) is None
    caplog.clear()
    assert [resting.rest(NOON) is None for _ in range(3)] == [False] * 3
    assert caplog.text.count("cannot be read") == 1, "a trouble is logged once"
    assert remove_rest_note(tmp_path, Wish.YIELD)
    assert resting.rest(NOON) is None
    note.write_bytes(content)
    assert resting.rest(NOON) is None, "the last one that was read is none"
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_note_that_cannot_be_read_counts_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(_: Path) -> bytes:
        raise error

    write_rest_note(tmp_path, Wish.YIELD, RestNote(until=NOON))
    rules = RestRules(None, "cpu", tmp_path)
    assert rules.rest(MIDNIGHT) is not None
    monkeypatch.setattr(rest_note, "read_private", refuse)
    with pytest.raises(OSError, match=r"denied|output"):
        read_rest_notes(tmp_path, Wish.YIELD)
    assert rules.rest(MIDNIGHT) is not None
    assert rules.rest(NOON) is None, "it ends when it said"


def test_who_holds_which_device(tmp_path: Path) -> None:
    held = DeviceLock("cuda:0", tmp_path)
    held.acquire()
    sharing = DeviceLock("cuda:0", tmp_path)
    sharing.acquire(allow_shared=True)
    assert [is_held(tmp_path, name) for name in (None, "cuda", "cuda:0", "cuda:1", "cpu")] == [True] * 3 + [False] * 2
    held.release()
    assert is_held(tmp_path, "cuda:0"), "the sharing one is still there"
    sharing.release()
    assert not is_held(tmp_path, None)


@pytest.mark.parametrize("shared", [False, True])
def test_who_holds_a_server_of_the_users(tmp_path: Path, *, shared: bool) -> None:
    """Its address has dots, as the names of lock files have."""
    server, first = "http://127.0.0.1:8000", DeviceLock("http://127.0.0.1:8000", tmp_path)
    lock = DeviceLock(server, tmp_path)
    if shared:
        first.acquire()
    lock.acquire(allow_shared=shared)
    first.release()
    assert [is_held(tmp_path, name) for name in (server, "http://127.0.0.2:8000", "cuda")] == [True, False, False]
    lock.release()
    assert not is_held(tmp_path, server)


def test_a_stop_counts_whenever_it_comes(tmp_path: Path) -> None:
    """Between two workers, too; and what one worker leaves in the queue does not stop the next."""
    requests = StopRequests()
    write_rest_note(tmp_path, Wish.YIELD, RestNote())
    rest = RestRules(None, "cpu", tmp_path).rest()
    assert rest is not None
    requests.request_rest(rest)
    requests.request_rest(rest)
    assert requests.orders.qsize() == 1
    requests.begin_shift()
    assert requests.orders.empty()
    assert requests.rest is None
    requests.request_stop()
    requests.begin_shift()
    assert requests.is_final
    assert not requests.orders.empty()


def test_a_pause_keeps_the_models_unless_somebody_wants_the_device(tmp_path: Path) -> None:
    """Each wish ends by itself, and what frees the device goes first."""
    rules = RestRules(NIGHT, "cuda:0", tmp_path)
    write_rest_note(tmp_path, Wish.PAUSE, RestNote(device="cuda", at_once=True))
    rest = rules.rest(MIDNIGHT)
    assert rest is not None
    assert (rest.in_words, rest.keeps_models, rest.at_once) == ("paused (helix pause --worker)", True, True)
    write_rest_note(tmp_path, Wish.YIELD, RestNote())
    for moment, device in ((MIDNIGHT, "cuda:0"), (NOON, "cuda:0")):
        rest = RestRules(NIGHT, device, tmp_path).rest(moment)
        assert rest is not None
        assert not rest.keeps_models
    assert remove_rest_note(tmp_path, Wish.YIELD)
    assert [rest is not None and rest.keeps_models for rest in (rules.rest(MIDNIGHT), rules.rest(NOON))] == [
        True,
        False,
    ]
    assert RestRules(None, "cpu", tmp_path).rest(NOON) is None, "another device's"
    assert remove_rest_note(tmp_path, Wish.PAUSE)
    assert rules.rest(MIDNIGHT) is None


def test_a_worker_yields_to_others_and_a_pause_waits_behind_them(tmp_path: Path) -> None:
    class Someone:
        here: str | None = "Blender runs"
        asked = 0

        def sign(self) -> str | None:
            self.asked += 1
            return self.here

    others = Someone()
    rules = RestRules(NIGHT, "cpu", tmp_path, others)  # type: ignore[arg-type]
    write_rest_note(tmp_path, Wish.PAUSE, RestNote())
    rest = rules.rest(MIDNIGHT)
    assert rest is not None
    assert (rest.in_words, rest.keeps_models) == ("Blender runs (HELIX_YIELD_WHEN)", False)
    assert rules.rest(NOON) is not None
    assert others.asked == 2, "also while something else decides"
    others.here = None
    rest = rules.rest(MIDNIGHT)
    assert rest is not None
    assert rest.keeps_models
