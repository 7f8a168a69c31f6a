"""Lines and stored requests that nobody would write: they are accepted or refused, and crash nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InvalidRequestError
from helix_jobs.intake.stored_requests import to_engine_request
from tests.unit.intake.made_up_values import json_values, objects
from tests.unit.intake.reader_invariants import check_invariants


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_crash_the_reader(data: bytes):
    check_invariants(data)


@pytest.mark.thorough
@given(st.lists(objects | json_values, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_json_crashes_the_reader(values: list):
    check_invariants(b"\n".join(json.dumps(value).encode() for value in values))


@pytest.mark.thorough
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
