"""Lines and stored requests that nobody would write: they are accepted or refused, and crash nothing."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_lines import read

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidRequestError
from helix_jobs.intake.stored_requests import to_engine_request

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(codec=None)),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(
    ["prompt", "messages", "custom_id", "priority", "metadata", "seed", "stop", "temperature", "max_tokens", "top_k",
     "stop_token_ids", "method", "url", "body", "n", "model", "role", "content", "max_completion_tokens"]
)  # fmt: skip
objects = st.recursive(
    st.dictionaries(field_names, json_values | st.sampled_from(["POST", "/v1/completions", "/v1/chat/completions"])),
    lambda inner: st.dictionaries(field_names, inner | st.lists(inner, max_size=2) | json_values),
    max_leaves=6,
)


def check_invariants(data: bytes) -> None:
    rejects = io.BytesIO()
    numbers = []
    for item in read(data, rejects=rejects):
        numbers.append(item.line)
        if isinstance(item, BadLine):
            assert item.field
            assert item.reason
            assert item.remedy
            assert str(item).isprintable()
            continue
        # What is accepted can be stored as UTF-8 JSON without NUL, comes back the same, and the engine takes it.
        text = json.dumps(item.request, ensure_ascii=False, allow_nan=False)
        assert "\\u0000" not in text
        stored = json.loads(text.encode())
        assert stored == item.request
        request = to_engine_request(1, stored)
        assert request.seed == item.request["seed"]
        assert (request.prompt is None) != (request.messages is None)
    assert numbers == sorted(set(numbers))
    # Each line is either accepted or rejected, never both or neither.
    lines = [piece for piece in data.split(b"\n") if piece.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(numbers) == len(lines)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_crash_the_reader(data: bytes):
    check_invariants(data)


@given(st.lists(objects | json_values, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_json_crashes_the_reader(values: list):
    check_invariants(b"\n".join(json.dumps(value).encode() for value in values))


@given(objects, st.data())
@settings(max_examples=100, deadline=None)
def test_no_damaged_json_crashes_the_reader(value: dict, data: st.DataObject):
    line = json.dumps(value, ensure_ascii=True).encode()
    at = data.draw(st.integers(0, len(line)))
    check_invariants(line[:at] + data.draw(st.binary(max_size=3)) + line[at + data.draw(st.integers(0, 3)) :])


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_a_stored_request_is_not_trusted(value: object):
    try:
        to_engine_request(1, value)
    except InvalidRequestError:
        return
    pytest.fail("no such value is a request")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": None},
        {"seed": True},
        {"seed": 2**64},
        {"prompt": None},
        {"prompt": ""},
        {"messages": [{"role": "user", "content": "x"}]},
        {"sampling": {"temperature": -1}},
        {"sampling": {"no_such_field": 1}},
        {"sampling": []},
    ],
)
def test_a_damaged_stored_request_is_refused(change: dict):
    good = {"prompt": "a", "sampling": {"max_tokens": 3}, "seed": 5, "metadata": {}}
    assert to_engine_request(8, good).request_id == "8"
    assert to_engine_request(8, good).sampling_params == SamplingParams(max_tokens=3)
    with pytest.raises(InvalidRequestError):
        to_engine_request(8, {**good, **change})
