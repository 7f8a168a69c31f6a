from __future__ import annotations

import base64
import copy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.broker.messages import MAX_BODY_CHARS, is_envelope, job_id_of, job_id_of_message
from helix_jobs.broker.publisher import CeleryPublisher, QueueNames
from helix_jobs.storage.records import PublishableJob
from tests.unit.broker.queued_message import MESSAGE, QUEUE, encode

if TYPE_CHECKING:
    from collections.abc import Callable


def test_what_the_publisher_writes_is_ours() -> None:
    publisher = CeleryPublisher("memory://", QueueNames("one"))
    publisher.publish([PublishableJob(7, 3), PublishableJob(2**63 - 1, 0)])
    channel = publisher._open_channel()
    written = [channel._get(QUEUE) for _ in range(2)]
    publisher.close()
    assert sorted(filter(None, (job_id_of_message(message, QUEUE) for message in written))) == [7, 2**63 - 1]


def test_a_message_that_was_given_back_is_ours() -> None:
    message = copy.deepcopy(MESSAGE)
    message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
    assert job_id_of_message(message, QUEUE) == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(body=encode([[0], {}, {}])),
        lambda m: m.update(body=encode([[2**63], {}, {}])),
        lambda m: m.update(body=encode([[True], {}, {}])),
        lambda m: m.update(body=encode([["7"], {}, {}])),
        lambda m: m.update(body=encode([[7, 8], {}, {}])),
        lambda m: m.update(body=encode([[7], {"a": 1}, {}])),
        lambda m: m.update(body=encode([[7], {}, {"callbacks": [{"task": "helix.run_job", "args": [8]}]}])),
        lambda m: m.update(body=encode([[7], {}])),
        lambda m: m.update(body=encode({"task": "helix.run_job"})),
        lambda m: m.update(body=encode([])),
        lambda m: m.update(body="!!!"),
        lambda m: m.update(body=base64.b64encode(b"\x80\x04pickle").decode()),
        lambda m: m.update(body=base64.b64encode(b"[[7" + b" " * MAX_BODY_CHARS + b"], {}, {}]").decode()),
        lambda m: m.update(body=base64.b64encode(b"[" * 300).decode()),
        lambda m: m.update(body=None),
        lambda m: m.update({"content-type": "application/x-python-serialize"}),
        lambda m: m.update({"content-type": None}),
        lambda m: m.update({"content-encoding": "utf-16"}),
        lambda m: m["headers"].update(task="celery.chord_unlock"),
        lambda m: m["headers"].update(id=""),
        lambda m: m["headers"].update(id="x" * 1000),
        lambda m: m["headers"].pop("id"),
        lambda m: m["headers"].update(eta="2999-01-01T00:00:00+00:00"),
        lambda m: m["headers"].update(expires="1999-01-01T00:00:00+00:00"),
        lambda m: m["headers"].update(timelimit=[1, 1]),
        lambda m: m["headers"].update(compression="zlib"),
        lambda m: m.update(headers=[]),
        lambda m: m["properties"].update(delivery_tag={"a": 1}),
        lambda m: m["properties"].update(priority="high"),
        lambda m: m["properties"].update(body_encoding="rot13"),
        lambda m: m["properties"].pop("body_encoding"),
        lambda m: m["properties"].update(delivery_info={}),
        lambda m: m["properties"]["delivery_info"].update(routing_key="elsewhere"),
        lambda m: m.pop("properties"),
    ],
)
def test_anything_else_is_not(change: Callable[[dict[str, Any]], object]) -> None:
    message = copy.deepcopy(MESSAGE)
    assert job_id_of_message(message, QUEUE) == 7
    change(message)
    assert job_id_of_message(message, QUEUE) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)
paths = [
    ("body",),
    ("headers",),
    ("properties",),
    ("properties", "delivery_info"),
    ("headers", "task"),
    ("headers", "id"),
]


@given(json_values)
def test_no_json_at_all_upsets_it(value: object) -> None:
    assert job_id_of_message(value, QUEUE) is None
    assert not is_envelope(value)
    assert job_id_of(value) in (None, *(value if isinstance(value, list) else ()))


@given(st.sampled_from(paths), json_values)
def test_no_changed_part_upsets_it(path: tuple[str, ...], value: object) -> None:
    message = copy.deepcopy(MESSAGE)
    part = message
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    assert job_id_of_message(message, QUEUE) in (None, 7)
