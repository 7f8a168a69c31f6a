"""The page's stream of events, read without a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.http_server import asking, serving

if TYPE_CHECKING:
    from tests.worker_box import Box

KEY = "a-key-of-some-length"


def test_a_stream_ends_when_who_opened_it_signs_out(embedded_box: Box) -> None:
    with serving(embedded_box, api_keys=KEY) as address, asking(address) as http:
        own = {"Origin": address}
        assert http.post("/sign-in", data={"key": KEY}, headers=own).status_code == 303
        with http.stream("GET", "/events") as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            assert http.post("/sign-out", headers=own).status_code == 303
            # A stream that goes on sends a comment every fifteen seconds.
            comments = 0
            for line in lines:
                comments += line.startswith(":")
                assert comments < 3, "the stream goes on"
        assert http.get("/events").status_code == 401
