"""Which broadcasts are commands, and which commands are answered."""

from __future__ import annotations

import base64
import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from celery.worker.control import Panel
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.broker.celery import remote_control
from helix_jobs.broker.celery.remote_control import ANSWERED, MAX_BODY_CHARS, is_command

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = "helix-7@host.helix.one.pidbox"
BODY: dict[str, Any] = {
    "method": "ping",
    "arguments": {},
    "destination": None,
    "pattern": None,
    "matcher": None,
    "ticket": "a-ticket",
    "reply_to": {"exchange": "reply.helix.one.pidbox", "routing_key": "an-id"},
}


def broadcast(body: object = BODY, **changes: Any) -> dict[str, Any]:
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 3, "expires": 1.5},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "helix.one.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "a-tag",
        },
    }
    return message | {name.replace("_", "-"): value for name, value in changes.items()}


def known(message: object) -> bool:
    return is_command(message, QUEUE, Panel.data)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "shutdown", "destination": ["helix-7@host"], "reply_to": None},
        {"method": "revoke", "arguments": {"task_id": ["7-ab"], "terminate": True, "signal": "SIGTERM"}},
        {"pattern": "helix-*", "matcher": "glob"},
        {"method": "rate_limit"},  # refused, with an answer
    ],
)
def test_what_celery_and_flower_send_is_a_command(change: dict[str, Any]) -> None:
    assert known(broadcast(BODY | change))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "os.system"},
        {"method": ["ping"]},
        {"method": None},
        {"arguments": [1]},
        {"arguments": "x"},
        {"destination": 5},
        {"destination": [5]},
        {"pattern": "x" * 1000},
        {"pattern": "(a+)+$", "matcher": "pcre"},
        {"matcher": "regex"},
        {"ticket": {"a": 1}},
        {"reply_to": "helix.one"},
        {"reply_to": {"exchange": "", "routing_key": "helix.one"}},
        {"reply_to": {"exchange": "reply.other.pidbox", "routing_key": "an-id"}},
        {"reply_to": {"exchange": "reply.helix.one.pidbox", "routing_key": ["x"]}},
        {"more": 1},
        {"arguments": {"__type__": "uuid", "__value__": "none"}},
    ],
)
def test_others_are_none(change: dict[str, Any]) -> None:
    assert not known(broadcast(BODY | change))


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        5,
        broadcast([]),
        broadcast("ping"),
        broadcast(body="!!!"),
        broadcast(body=None),
        broadcast(body=base64.b64encode(b"no json").decode()),
        broadcast(body=base64.b64encode(b"[" * 40_000).decode()),
        broadcast(body=base64.b64encode(b" " * MAX_BODY_CHARS).decode()),
        broadcast(content_type="application/x-python-serialize"),
        broadcast(content_encoding="utf-16"),
        broadcast(headers={"clock": "late"}),
        broadcast(headers={"clock": 2**60}),
        broadcast(headers=None),
        broadcast(properties={}),
    ],
)
def test_what_kombu_could_not_read_is_none(message: object) -> None:
    assert not known(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(BODY)), json_values)
def test_no_changed_part_upsets_it(name: str, value: object) -> None:
    message = broadcast(copy.deepcopy(BODY) | {name: value})
    assert known(message) in (True, False)


@pytest.fixture
def said() -> Iterator[list[str]]:
    before = dict(Panel.data)
    reasons: list[str] = []
    remote_control.restrict(reasons.append)
    yield reasons
    Panel.data.clear()
    Panel.data.update(before)


def call(command: str, /, **arguments: Any) -> Any:
    return Panel.data[command](None, **arguments)


def test_whatever_flower_asks_is_answered(said: list[str]) -> None:
    asked = {"stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf"}
    assert asked | {"ping", "enable_events", "heartbeat", "revoke", "shutdown"} <= ANSWERED <= Panel.data.keys()
    assert call("ping") == {"ok": "pong"}
    assert said == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rate_limit", "it answers active"),
        ("add_consumer", "one queue"),
        ("cancel_consumer", "one queue"),
        ("pool_grow", "--max-batch-size"),
        ("pool_shrink", "--max-batch-size"),
        ("pool_restart", "start it again"),
        ("autoscale", "--max-batch-size"),
        ("time_limit", "--job-timeout"),
        ("memdump", "does not take memdump"),
        ("disable_events", "does not take disable_events"),
    ],
)
def test_everything_else_is_refused_with_a_sentence(name: str, words: str, said: list[str]) -> None:
    assert words in call(name, n=5)["error"]
    assert said == [f"remote control ({name})"]


def test_every_command_is_either_answered_or_refused(said: list[str]) -> None:
    for name in Panel.data.keys() - ANSWERED:
        assert "does not take" in call(name)["error"]


@pytest.mark.parametrize(("name", "arguments"), [("enable_events", {"more": 1}), ("terminate", {"nonsense": 1})])
def test_arguments_it_does_not_take_are_an_answer(name: str, arguments: dict[str, Any], said: list[str]) -> None:
    assert call(name, **arguments) == {"error": f"{name} failed: TypeError"}
    assert said == [f"remote control ({name} with arguments it does not take)"]


@pytest.mark.parametrize("name", ["name", "handler", "on_reject", "state", "arguments", "self"])
def test_no_argument_of_a_broadcast_is_taken_for_one_of_the_workers_own(name: str, said: list[str]) -> None:
    assert known(broadcast(BODY | {"method": "enable_events", "arguments": {name: "x"}}))
    assert call("enable_events", **{name: "x"}) == {"error": "enable_events failed: TypeError"}
    assert "does not take pool_grow" in call("pool_grow", **{name: "x"})["error"]
    assert said == [
        "remote control (enable_events with arguments it does not take)",
        "remote control (pool_grow)",
    ]
