"""Reading lines: whatever the bytes are, each line is accepted or refused by name."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.raw_lines import MAX_LINE_BYTES
from helix_jobs.new_job import NewJob, derive_seed
from tests.unit.intake.request_lines import BATCH, GREEDY, read, read_one


def bad(data: bytes | dict) -> tuple[str, str]:
    item = read_one(data)
    assert isinstance(item, BadLine), item
    assert item.remedy
    return item.field, item.reason


def test_a_prompt_line_becomes_a_request():
    item = read_one(
        {"prompt": "Hello", "max_tokens": 5, "stop": "x", "custom_id": "a", "priority": 3, "metadata": {"k": [1]}}
    )
    assert item == NewJob(
        line=1,
        custom_id="a",
        request={
            "prompt": "Hello",
            "sampling": {"max_tokens": 5, "stop": ["x"]},
            "metadata": {"k": [1]},
            "seed": derive_seed(BATCH, 1),
        },
        priority=3,
        size=item.size,
    )


def test_defaults_fill_what_a_line_leaves_out_and_null_counts_as_left_out():
    defaults = SamplingParams(max_tokens=7, temperature=0.5, seed=9)
    (item,) = read(b'{"prompt": "a", "temperature": 0.25, "max_tokens": null}', defaults)
    assert item.request["sampling"] == {"max_tokens": 7, "temperature": 0.25, "seed": 9}
    assert item.request["seed"] == 9


def test_seeds_differ_by_line_and_batch_and_fit_64_bits():
    seeds = {derive_seed(batch, line) for batch in ("b-1", "b-2") for line in range(1000)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_tolerated():
    items = read(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \t\n{"prompt": "b"}\r\n{"prompt": "c"}')
    assert [(item.line, item.request["prompt"]) for item in items] == [(1, "a"), (4, "b"), (5, "c")]


def test_separators_that_are_no_newline_do_not_split_a_line():
    text = "a\u2028b\u0085c\x0bd"
    assert (
        read_one(json.dumps({"prompt": text}, ensure_ascii=False).replace("\x0b", "\\u000b").encode()).request["prompt"]
        == text
    )


def test_emoji_escaped_as_a_surrogate_pair_are_text():
    assert read_one(b'{"prompt": "\\ud83d\\ude00"}').request["prompt"] == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"hello", "(line)", "is not JSON: Expecting value at character 1"),
        (b'{"prompt": "a"', "(line)", "is not JSON: Expecting ',' delimiter at character 15"),
        (b'{"prompt": "a"} {"prompt": "b"}', "(line)", "is not JSON: Extra data at character 17"),
        (b'["a"]', "(line)", "is a list, not an object"),
        (b"null", "(line)", "is null, not an object"),
        (b'"text"', "(line)", "is a string, not an object"),
        (b'{"prompt": "a", "temperature": NaN}', "(line)", "holds NaN, which is not JSON"),
        (b'{"prompt": "a", "temperature": -Infinity}', "(line)", "holds -Infinity, which is not JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "(line)", "holds a number beyond floating point"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "(line)", "holds a number with too many digits"),
        (b'{"prompt": "a", "prompt": "b"}', "prompt", "is given twice"),
        (b'{"prompt": "a", "metadata": {"": 1, "": 2}}', '""', "is given twice"),
        (b'{"prompt": "\xff"}', "(line)", "is not UTF-8 at byte 13"),
        (b'{"prompt": "caf\xe9"}', "(line)", "is not UTF-8 at byte 16"),
        (b'{"prompt": "\xed\xa0\x80"}', "(line)", "is not UTF-8 at byte 13"),
        (b'{"prompt": "a\\u0000b"}', "prompt", "holds a NUL character"),
        (b'{"prompt": "a\\uD800b"}', "prompt", "holds half of a surrogate pair"),
        (
            b'{"prompt": "a", "metadata": {"x": [{"y": "\\udfff"}]}}',
            "metadata.x[0].y",
            "holds half of a surrogate pair",
        ),
        (b'{"prompt": "a", "metadata": {"\\u0000": 1}}', "metadata.\\x00", "holds a NUL character"),
        (b'{"prompt": "a\0b"}', "(line)", "holds NUL bytes or a UTF-16 mark"),
        ('{"prompt": "a"}'.encode("utf-16"), "(line)", "holds NUL bytes or a UTF-16 mark"),
        (b"{}", "prompt", "is missing"),
        (b'{"prompt": null}', "prompt", "is null"),
        (b'{"prompt": ""}', "prompt", "is empty"),
        (b'{"prompt": " \\n "}', "prompt", "is empty"),
        (b'{"prompt": 5}', "prompt", "is a number"),
        (b'{"prompt": ["a", "b"]}', "prompt", "is a list"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "messages", "stands beside prompt"),
        (b'{"messages": []}', "messages", "is empty"),
        (b'{"messages": {}}', "messages", "is an object"),
        (b'{"messages": ["a"]}', "messages[0]", "is a string"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content", "is missing"),
        (b'{"messages": [{"role": "user", "content": null}]}', "messages[0].content", "is null"),
        (b'{"messages": [{"role": "user", "content": " "}]}', "messages", "is empty"),
        (b'{"messages": [{"content": "a"}]}', "messages[0].role", "is missing"),
        (b'{"messages": [{"role": "function", "content": "a"}]}', "messages[0].role", "is function"),
        (b'{"messages": [{"role": ["user"], "content": "a"}]}', "messages[0].role", "is a list"),
        (b'{"messages": [{"role": "user", "content": "a", "name": 1}]}', "messages[0].name", "is a number"),
        (
            b'{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}',
            "messages[0].tool_calls",
            "is not supported",
        ),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "messages[0].content[0]",
            "is no text part",
        ),
        (b'{"prompt": "a", "custom_id": 1.5}', "custom_id", "is a number"),
        (b'{"prompt": "a", "custom_id": ""}', "custom_id", "has 0 characters"),
        (b'{"prompt": "a", "custom_id": "' + b"x" * 513 + b'"}', "custom_id", "has 513 characters"),
        (b'{"prompt": "a", "priority": 10}', "priority", "is out of range"),
        (b'{"prompt": "a", "priority": true}', "priority", "is a boolean"),
        (b'{"prompt": "a", "priority": 1.5}', "priority", "is a number"),
        (b'{"prompt": "a", "metadata": []}', "metadata", "is a list"),
        (
            b'{"prompt": "a", "metadata": ' + b'{"a": ' * 40 + b"1" + b"}" * 40 + b"}",
            "metadata",
            "is nested too deeply",
        ),
        (b'{"prompt": "a", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "(line)", "is nested too deeply"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature", "is a string"),
        (b'{"prompt": "a", "temperature": true}', "temperature", "is a boolean"),
        (b'{"prompt": "a", "temperature": -0.1}', "temperature", "-0.1 is out of range"),
        (b'{"prompt": "a", "top_p": 0}', "top_p", "0 is out of range"),
        (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens", "is a number"),
        (b'{"prompt": "a", "stop": [""]}', "stop", "holds a string of 0 characters"),
        (b'{"prompt": "a", "seed": 18446744073709551616}', "seed", "18446744073709551616 is out of range"),
    ],
)
def test_each_bad_line_names_its_field_and_reason(line: bytes, field: str, reason: str):
    assert bad(line) == (field, reason)


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("max_token", "did you mean max_tokens?"),
        ("promt", "did you mean prompt?"),
        ("max_new_tokens", "use max_tokens"),
        ("zzz", "remove it"),
    ],
)
def test_an_unknown_field_is_refused_with_what_was_probably_meant(field: str, remedy: str):
    assert read_one({"prompt": "a", field: 1}) == BadLine(1, field, "is not a known field", remedy)


def test_messages_of_a_bad_line_do_not_quote_the_prompt():
    for line in (
        '{"prompt": "SECRET',
        '{"prompt": "SECRET", "top_p": 2}',
        '{"prompt": "SECRET\\u0000"}',
        '{"promt": "SECRET"}',
    ):
        assert "SECRET" not in str(read_one(line.encode()))


def test_a_field_name_cannot_break_the_report():
    field, _ = bad({"prompt": "a", "\x1b[31m\n" + "x" * 10_000: 1})
    assert field.isprintable()
    assert len(field) < 80


def test_content_parts_are_joined_and_developer_becomes_system():
    item = read_one(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
                    "name": "Ann",
                },
                {"role": "assistant", "content": "", "refusal": None, "annotations": [], "tool_calls": None},
                {"role": "user", "content": "three"},
            ]
        }
    )
    assert item.request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo", "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "three"},
    ]


def test_the_second_use_of_a_custom_id_is_bad_and_names_the_first():
    lines = [
        b'{"prompt": "a", "custom_id": "x"}',
        b'{"prompt": "b", "custom_id": "X"}',
        b'{"prompt": "c", "custom_id": "x"}',
    ]
    items = read(b"\n".join(lines))
    assert [type(item) for item in items] == [NewJob, NewJob, BadLine]
    assert items[2] == BadLine(3, "custom_id", "is the one of line 1", "give each line its own")


def test_ten_thousand_duplicates_are_each_traced_to_their_first_line():
    lines = [b'{"prompt": "a", "custom_id": "id-%d"}' % number for number in range(10_000)]
    items = read(b"\n".join([*lines, *lines[::-1]]))
    assert all(isinstance(item, NewJob) for item in items[:10_000])
    reasons = [item.reason for item in items[10_000:]]
    assert reasons == [f"is the one of line {number}" for number in range(10_000, 0, -1)]


def test_a_bad_line_does_not_use_up_its_custom_id():
    items = read(b'{"prompt": "", "custom_id": "x"}\n{"prompt": "b", "custom_id": "x"}')
    assert [type(item) for item in items] == [BadLine, NewJob]


def test_rejects_receive_bad_lines_byte_for_byte():
    over = b"y" * (MAX_LINE_BYTES + 100_000)
    wrong = b'{"promt": "\xff"}'
    for end in (b"", b"\n"):
        rejects = io.BytesIO()
        read(b"\n".join([b'{"prompt": "a"}', wrong, over, b'{"prompt": "b"}', b"{}", over]) + end, rejects=rejects)
        assert rejects.getvalue() == b"\n".join([wrong, over, b"{}", over, b""])


def test_mappings_follow_the_same_rules():
    def generate():
        yield {"prompt": "a", "custom_id": "x"}
        yield {"prompt": "b", "custom_id": "x"}
        yield {"prompt": float("nan")}
        yield {"prompt": object()}
        yield "text"
        yield {"prompt": "x" * MAX_LINE_BYTES}
        yield {"prompt": "c", "stop": ("y",)}

    items = list(LineReader(GREEDY).read_mappings(generate()))
    assert [(item.line, item.field) for item in items if isinstance(item, BadLine)] == [
        (2, "custom_id"),
        (3, "(line)"),
        (4, "(line)"),
        (5, "(line)"),
        (6, "(line)"),
    ]
    assert [item.request["prompt"] for item in items if isinstance(item, NewJob)] == ["a", "c"]
    assert items[-1].request["sampling"] == {"stop": ["y"]}


def test_the_example_file_is_accepted_whole():
    path = Path(__file__).parents[3] / "examples" / "prompts.jsonl"
    with path.open("rb") as stream:
        items = list(LineReader(GREEDY).read(stream))
    assert len(items) >= 8
    assert all(isinstance(item, NewJob) and item.custom_id for item in items), items
    assert {"prompt", "messages"} <= {name for item in items for name in item.request}
    assert any("endpoint" in item.request for item in items)


def test_equal_numbers_of_other_types_are_not_taken_for_each_other():
    def sampling(text: str, defaults: SamplingParams) -> str:
        (line,) = LineReader(defaults).read(io.BytesIO(text.encode()))
        assert isinstance(line, NewJob)
        return json.dumps(line.request["sampling"], sort_keys=True)

    for text in ("2", "2.0", "2"):
        line = f'{{"prompt": "x", "temperature": {text}}}'
        assert sampling(line, SamplingParams()) == f'{{"temperature": {text}}}'
    for default, text in ((2, "2"), (2.0, "2.0")):
        line = '{"prompt": "x", "max_tokens": 3}'
        assert sampling(line, SamplingParams(temperature=default)) == f'{{"max_tokens": 3, "temperature": {text}}}'
    (bad,) = LineReader(SamplingParams()).read(io.BytesIO(b'{"prompt": "x", "max_tokens": true}'))
    assert isinstance(bad, BadLine)
    sampling('{"prompt": "x", "max_tokens": 1}', SamplingParams())
    (bad,) = LineReader(SamplingParams()).read(io.BytesIO(b'{"prompt": "x", "max_tokens": true}'))
    assert isinstance(bad, BadLine)


def test_lines_do_not_share_what_they_ask_for():
    lines = list(LineReader(SamplingParams()).read(io.BytesIO(b'{"prompt": "x", "top_k": 3}\n' * 2)))
    assert all(isinstance(line, NewJob) for line in lines)
    assert lines[0].request["sampling"] is not lines[1].request["sampling"]  # type: ignore[union-attr]
