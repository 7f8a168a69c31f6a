"""The adapter that a line asks for, in every form: stored as it is, and handed to the engine."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidRequestError
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_lines import line_of
from helix_jobs.intake.stored_requests import to_engine_request

CHAT = [{"role": "user", "content": "Hi"}]


def read_one(values: dict[str, Any]) -> Any:
    (item,) = LineReader(SamplingParams()).read(io.BytesIO(json.dumps(values).encode()))
    return item


def openai(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": CHAT, **body}}


@pytest.mark.parametrize(
    ("line", "adapter", "model"),
    [
        ({"prompt": "Hi", "adapter": "sql"}, "sql", None),
        ({"messages": CHAT, "model": "sql"}, None, "sql"),
        ({"messages": CHAT, "model": "any", "adapter": "sql"}, "sql", "any"),
        ({"prompt": "Hi", "adapter": None}, None, None),
        (openai(adapter="sql"), "sql", None),
        (openai(model="sql"), None, "sql"),
        ({"custom_id": "a", "params": {"model": "sql", "max_tokens": 9, "messages": CHAT}}, None, "sql"),
    ],
    ids=str,
)
def test_lines_name_an_adapter_or_a_model(line: dict[str, Any], adapter: str | None, model: str | None) -> None:
    stored = {"seed": 1, **read_one(line).request}
    request = to_engine_request(1, stored)
    assert (request.adapter, request.model) == (adapter, model)
    again = {"seed": 1, **read_one(line_of(stored)).request}
    assert (again.get("adapter"), again.get("model")) == (adapter, model)


@pytest.mark.parametrize(
    ("line", "field"), [({"prompt": "Hi", "adapter": 3}, "adapter"), (openai(adapter=[]), "body.adapter")]
)
def test_an_adapter_that_is_no_text_is_refused(line: dict[str, Any], field: str) -> None:
    found = read_one(line)
    assert isinstance(found, BadLine)
    assert (found.field, found.remedy) == (field, "give a string or remove it")


@pytest.mark.parametrize("name", ["lora_path", "lora", "lora_request"])
def test_other_programs_names_lead_to_it(name: str) -> None:
    found = read_one({"prompt": "Hi", name: "x"})
    assert isinstance(found, BadLine)
    assert found.remedy == "use adapter, with the name of one that the worker has"


@pytest.mark.parametrize("field", ["adapter", "model"])
def test_a_stored_request_is_checked_again(field: str) -> None:
    stored = {"prompt": "a", "sampling": {}, "seed": 1, field: 3}
    with pytest.raises(InvalidRequestError, match=f"{field}: is "):
        to_engine_request(1, stored)
