"""Each rule refuses what it should and accepts what it should, with a reason that never quotes the answer."""

from __future__ import annotations

import pytest

from helix_jobs.acceptance.judge import Answer, judge
from helix_jobs.acceptance.rule import AcceptanceRule

PRICE = {
    "type": "object",
    "properties": {"price": {"type": "integer", "minimum": 0}, "when": {"type": "string", "format": "date"}},
    "required": ["price"],
    "additionalProperties": False,
}


def refusal(rule, text, *, tokens=3, is_cut=False, own=None):
    return judge(AcceptanceRule(**rule), Answer(text, tokens, is_cut), own)


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        ({"min_chars": 5}, "  abcde\n", None),
        ({"min_chars": 5}, "abcd     ", "it has 4 characters, and min_chars is 5"),
        ({"max_chars": 3}, " abc ", None),
        ({"max_chars": 3}, "abcd", "it has 4 characters, and max_chars is 3"),
        ({"max_chars": 0}, "", None),
        ({"min_tokens": 3}, "a", None),
        ({"min_tokens": 4}, "a", "it has 3 tokens, and min_tokens is 4"),
        ({"max_tokens": 3}, "a", None),
        ({"max_tokens": 2}, "a", "it has 3 tokens, and max_tokens is 2"),
        ({"not_cut": True}, "a", None),
        ({"not_repeating": True}, "ha " * 33, None),
        ({"not_repeating": True}, "ha " * 34, "it repeats itself: its last 102 characters have a period of 3"),
        ({"regex": "yes|no"}, "\n yes ", None),
        ({"regex": "yes|no"}, "yes, no", "it does not match the regular expression"),
        ({"regex": "yes|no"}, "nope", "it does not match the regular expression"),
        ({"regex": r"\d{3}"}, "123", None),
        ({"regex": r"\d{3}"}, "1234", "it does not match the regular expression"),
        ({"regex": "a.b"}, "a\nb", "it does not match the regular expression"),
        ({"regex": r"a[\s\S]b"}, "a\nb", None),
        ({"schema": PRICE}, ' {"price": 5, "when": "2026-02-28"}\n', None),
        ({"schema": PRICE}, '{"price": "secret"}', "it fails properties/price/type"),
        ({"schema": PRICE}, '{"price": -1}', "it fails properties/price/minimum"),
        ({"schema": PRICE}, '{"when": "2026-02-28"}', "it fails required"),
        ({"schema": PRICE}, '{"price": 5, "when": "2026-02-30"}', "it fails properties/when/format"),
        ({"schema": PRICE}, '{"price": 5, "secret": 1}', "it fails additionalProperties"),
        ({"schema": PRICE}, '{"price": 5', "it is not JSON (line 1, column 12)"),
        ({"schema": PRICE}, '{"price": NaN}', "it is not JSON"),
        ({"schema": PRICE}, 'Sure! {"price": 5}', "it is not JSON (line 1, column 1)"),
        ({"schema": {}}, "[" * 100_000, "it is nested too deeply to be looked at"),
        ({"schema": {"items": {"$ref": "#"}}}, "[" * 300 + "]" * 300, "it is nested too deeply to be looked at"),
        ({"schema": {"items": {"$ref": "#"}}}, "[" * 250 + "]" * 250, None),
    ],
)
def test_each_rule(rule, text, reason):
    found = refusal(rule, text)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.endswith(reason)
        assert "secret" not in found


def test_an_answer_that_max_tokens_cut_off_is_refused():
    assert refusal({"not_cut": True}, "a", is_cut=True) == "it was cut off by max_tokens or by the end of the context"
    assert refusal({"min_chars": 1}, "a", is_cut=True) is None


def test_the_requests_own_schema_is_used_where_the_rule_says_true():
    assert refusal({"schema": True}, '{"price": 1}', own=PRICE) is None
    assert refusal({"schema": True}, "{}", own=PRICE) is not None
    assert "cannot be used" in refusal({"schema": True}, "{}"), "someone changed the row"


def test_all_conditions_must_hold():
    rule = {"min_chars": 2, "regex": "[ab]+"}
    assert refusal(rule, "ab") is None
    assert refusal(rule, "a") is not None
    assert refusal(rule, "abc") is not None
