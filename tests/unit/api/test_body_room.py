"""What a server holds of half-sent bodies."""

from __future__ import annotations

import pytest

from helix_jobs.api.body_room import FREE_BYTES, ROOM_BYTES, BodyRoom
from helix_jobs.api.problems import Problem


def test_what_is_held_is_counted_beyond_the_first_bytes_and_given_back() -> None:
    room = BodyRoom()
    with room.place() as place:
        place.hold(FREE_BYTES)
        assert room.held == 0
        place.hold(FREE_BYTES + 10)
        place.hold(FREE_BYTES + 30)
        assert room.held == 30
        place.hold(FREE_BYTES + 5)  # a part was stored
        assert room.held == 5
    assert room.held == 0


def test_a_full_room_refuses_large_bodies_and_takes_small_ones() -> None:
    room = BodyRoom()
    with room.place() as large:
        large.hold(FREE_BYTES + ROOM_BYTES)
        with room.place() as small:
            small.hold(FREE_BYTES)
        with pytest.raises(Problem) as raised, room.place() as another:
            another.hold(FREE_BYTES + 1)
        assert (raised.value.status, raised.value.code) == (429, "too_many_requests")
        assert raised.value.retry_after
        large.hold(FREE_BYTES)
        with room.place() as another:
            another.hold(FREE_BYTES + 1)
    assert room.held == 0
