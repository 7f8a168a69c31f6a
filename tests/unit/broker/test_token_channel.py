"""Messages about growing answers: read back, and told from whatever else comes over a channel."""

from __future__ import annotations

import json

import pytest

from helix_jobs.broker.queue_names import QueueNames
from helix_jobs.broker.token_channel import Growth, channel_of

GROWTH = Growth(7, 2, 1, 0, "hm é", 3, "Elbe\n\u2028😀")


def test_a_message_is_read_back() -> None:
    assert Growth.of_message(GROWTH.to_message()) == GROWTH


@pytest.mark.parametrize("field", ["job_id", "lease", "choice", "reasoning_at", "text_at"])
@pytest.mark.parametrize("value", [-1, 1.0, "1", None, True])
def test_numbers_are_counts(field: str, value: object) -> None:
    values = {**json.loads(GROWTH.to_message()), field: value}
    assert Growth.of_message(json.dumps(values)) is None


@pytest.mark.parametrize("data", [None, 1, b"", b"{", b"[]", b"{}", b"\xff", "null", json.dumps({"job_id": 7})])
def test_anything_else_is_no_message(data: object) -> None:
    assert Growth.of_message(data) is None


def test_texts_are_texts_and_nothing_is_beside_them() -> None:
    values = json.loads(GROWTH.to_message())
    assert Growth.of_message(json.dumps({**values, "text": 5})) is None
    assert Growth.of_message(json.dumps({**values, "more": 5})) is None


def test_channels_belong_to_an_installation() -> None:
    assert channel_of(QueueNames("abc"), "s1") == "helix.abc.stream.s1"
