"""Claims: what the answers to the lines of ``examples/features.jsonl`` must show, each beside its line without it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs
import pytest

from tests.acceptance.readme_text import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
EXAMPLES: Final = ROOT / "examples"


def lines_of(example: str) -> dict[str, Row]:
    """The lines of an example file under their names."""
    lines = map(json.loads, (EXAMPLES / example).read_text(encoding="utf-8").splitlines())
    return {line["custom_id"]: line for line in lines}


FEATURES: Final = lines_of("features.jsonl")
EXTRACTION: Final = lines_of("extract.jsonl")
SCHEMA: Final = FEATURES["json-schema"]["response_format"]["json_schema"]["schema"]
WITHOUT: Final = " without"
# Lines that say the same in another way; their answers must be the same.
LAST_TOKENS: Final = "last tokens"
WRITTEN_OUT: Final = "written out"


@dataclass(frozen=True)
class Claim:
    """What the rows of a line must show, and what takes the feature out of the line.

    Attributes:
        holds: Whether the rows show the feature.
        removed: Fields that the line without the feature does not have.
        replaced: Fields that it has instead.
    """

    holds: Callable[[list[Row]], bool]
    removed: tuple[str, ...]
    replaced: tuple[tuple[str, Any], ...] = ()

    def taken_out(self, line: Row) -> Row:
        """The line without the feature."""
        body = line.get("body", line)
        kept = {name: value for name, value in body.items() if name not in self.removed} | dict(self.replaced)
        bare = {**line, "body": kept} if "body" in line else kept
        return {**bare, "custom_id": line["custom_id"] + WITHOUT}


def text_of(rows: list[Row]) -> str:
    return str(rows[0]["output_text"])


def keeps_json(rows: list[Row], schema: Row | None = None) -> bool:
    try:
        answer = json.loads(text_of(rows))
    except ValueError:
        return False
    return jsonschema_rs.is_valid(schema or {"type": "object"}, answer) and rows[0]["is_valid"] is True


def matches(pattern: str) -> Callable[[list[Row]], bool]:
    return lambda rows: re.fullmatch(pattern, text_of(rows)) is not None and rows[0]["is_valid"] is True


def adds_up(rows: list[Row]) -> bool:
    """The answer's log probabilities: one for each token, and of a greedy answer each is the highest at its place."""
    content = rows[0]["logprobs"]
    return (
        content is not None
        and len(content) == rows[0]["completion_tokens"]
        and all([one["token"], one["logprob"]] == list(one["top_logprobs"][0].values())[:2] for one in content)
        and {len(one["top_logprobs"]) for one in content} == {3}
        and sum(one["logprob"] for one in content) == pytest.approx(rows[0]["cumulative_logprob"])
    )


def fails_with(*words: str) -> Callable[[list[Row]], bool]:
    def holds(rows: list[Row]) -> bool:
        row = rows[0]
        return row["error_code"] == "invalid_request" and all(word in row["error_message"] for word in words)

    return holds


CLAIMS: Final = {
    "json-schema": Claim(lambda rows: keeps_json(rows, SCHEMA), ("response_format",)),
    "json-object": Claim(keeps_json, ("response_format",)),
    "regex": Claim(matches(r"20\d\d-(0[1-9]|1[0-2])"), ("structured_outputs",)),
    "choice": Claim(matches("Oslo|Graz|Rome"), ("structured_outputs",)),
    "grammar": Claim(matches(r"[1-9]\d?( [+-] [1-9]\d?){2}"), ("structured_outputs",)),
    "three-answers": Claim(
        lambda rows: [row["choice"] for row in rows] == [0, 1, 2] and len({row["output_text"] for row in rows}) == 3,
        ("n",),
    ),
    "logprobs": Claim(adds_up, ("logprobs", "top_logprobs")),
    "prompt-logprobs": Claim(
        lambda rows: (
            rows[0]["prompt_logprobs"] is not None
            and "".join(one["token"] for one in rows[0]["prompt_logprobs"]) == rows[0]["prompt"]
        ),
        ("prompt_logprobs",),
    ),
    "loglikelihood": Claim(
        lambda rows: (
            rows[0]["completion_tokens"] == 0
            and text_of(rows) == ""
            and [one["logprob"] is None for one in rows[0]["prompt_logprobs"]] == [True] + [False] * 5
        ),
        ("echo", "logprobs"),
        (("max_tokens", 4),),
    ),
    "scored-choices": Claim(
        lambda rows: (
            text_of(rows) == " Paris"
            and rows[0]["scores"].keys() == {" Paris", " London", " blue"}
            and max(rows[0]["scores"], key=lambda option: rows[0]["scores"][option]["sum"]) == " Paris"
        ),
        ("choices",),
        (("max_tokens", 4),),
    ),
    "logit-bias": Claim(lambda rows: text_of(rows) == " London London London", ("logit_bias",)),
    "stop": Claim(
        lambda rows: rows[0]["finish_reason"] == "stop" and "Paris" in text_of(rows) and "." not in text_of(rows),
        ("stop",),
    ),
    "stop-kept": Claim(
        lambda rows: text_of(rows).endswith(".") and text_of(rows).count(".") == 1, ("include_stop_str_in_output",)
    ),
    "min-tokens": Claim(lambda rows: rows[0]["completion_tokens"] >= 20, ("min_tokens",)),
    "bad-words": Claim(lambda rows: "Paris" not in text_of(rows), ("bad_words",)),
    "allowed-tokens": Claim(lambda rows: set(text_of(rows).split()) <= {"yes", "no"}, ("allowed_token_ids",)),
    "truncated": Claim(
        lambda rows: rows[0]["prompt_tokens"] == 6 and rows[0]["dropped_prompt_tokens"] > 100,
        ("truncate_prompt_tokens",),
    ),
    "accepted": Claim(lambda rows: rows[0]["tries"] > 0 and text_of(rows) == " tails", ("accept",)),
    "not-accepted": Claim(
        lambda rows: (
            (rows[0]["state"], rows[0]["error_code"], rows[0]["tries"]) == ("failed", "not_accepted", 2)
            and "regular expression" in rows[0]["error_message"]
            and bool(text_of(rows))
        ),
        ("accept",),
    ),
    "tools": Claim(fails_with("chat template", "tools"), ("tools",)),
    "thinking": Claim(fails_with("chat template", "enable_thinking"), ("enable_thinking",)),
}
# Without this field the line says the same, as the continuation is the default; its answer shows it.
PREFILL: Final = "prefill"
