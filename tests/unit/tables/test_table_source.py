"""Rows become lines: templates, the rows that count, their order, and what is bad about a row."""

from __future__ import annotations

import io
import json
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.text.bounded_process import ProcessLimits
from helix_jobs.errors import BadLine, ConfigurationError, InputError
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from helix_jobs.tables.ask import TableAsk
from helix_jobs.tables.columns import Selection
from helix_jobs.tables.render_process import MAX_ANSWER_CHARS
from helix_jobs.tables.row import Row
from helix_jobs.tables.row_renderer import RenderLimits, RowRenderer
from helix_jobs.tables.table_source import TableSource
from tests.unit.tables.table_lines import lines_of, prompts_of

PEOPLE = b"id,First name,text,age\na,Ada,one,36\nb,Bo,two,7\nc,Cy,three,90\n"


def test_a_template_is_filled_in_for_each_row():
    assert prompts_of(PEOPLE, prompt='{{ row["First name"] }}: {{ text|upper }}\n') == [
        "Ada: ONE",
        "Bo: TWO",
        "Cy: THREE",
    ]


def test_lines_and_ids_are_those_of_the_rows():
    lines = lines_of(PEOPLE, prompt="{{ text }}", id="id")
    assert [(line.line, line.custom_id) for line in lines] == [(2, "a"), (3, "b"), (4, "c")]


def test_a_chat_has_the_prompt_as_the_users_message():
    user = {"role": "user", "content": "one"}
    assert prompts_of(PEOPLE, prompt="{{ text }}", chat=True, limit=1) == [[user]]
    system = {"role": "system", "content": "Ada asks."}
    assert prompts_of(PEOPLE, prompt="{{ text }}", system='{{ row["First name"] }} asks.', limit=1) == [[system, user]]


def test_messages_are_templates_in_all_their_texts():
    messages = [{"role": "user", "content": [{"type": "text", "text": "{{ text }}"}]}]
    assert prompts_of(PEOPLE, messages=messages, limit=1) == [[{"role": "user", "content": "one"}]]


def test_without_a_template_columns_are_fields_and_empty_cells_are_not_given():
    data = b"prompt,max_tokens,custom_id\nHello,5,a\nHi,,\nHo,many,c\n"
    first, second, bad = lines_of(data)
    assert (first.request["sampling"], first.custom_id) == ({"max_tokens": 5}, "a")
    assert (second.request["sampling"], second.custom_id) == ({}, None)
    assert (bad.line, bad.field) == (4, "max_tokens")
    lines = lines_of(PEOPLE, select=Selection.parse(["prompt=text,custom_id=id"]))
    assert [(line.request["prompt"], line.custom_id) for line in lines] == [("one", "a"), ("two", "b"), ("three", "c")]


def test_where_and_limit_choose_rows():
    assert prompts_of(PEOPLE, prompt="{{ id }}", where="age|int > 30") == ["a", "c"]
    assert prompts_of(PEOPLE, prompt="{{ id }}", where="age|int > 30", limit=1) == ["a"]
    assert prompts_of(PEOPLE, prompt="{{ id }}", where='row["First name"].startswith("B")') == ["b"]
    assert prompts_of(PEOPLE, prompt="{{ id }}", limit=2) == ["a", "b"]


def test_a_shuffle_is_an_order_of_its_seed_and_a_limit_its_beginning():
    table = [{"n": number} for number in range(500)]
    orders = [prompts_of(table, prompt="{{ n }}", shuffle=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0], key=int) == [str(number) for number in range(500)] != orders[0]
    assert prompts_of(table, prompt="{{ n }}", shuffle=0, limit=9) == orders[0][:9]
    assert (
        prompts_of(table, prompt="{{ n }}", shuffle=0, where="n > 490", limit=3)
        == [n for n in orders[0] if int(n) > 490][:3]
    )


def test_a_selection_is_all_that_a_template_sees():
    bad, *_ = lines_of(PEOPLE, prompt="{{ text }} {{ age }}", select=Selection.parse(["text", "years=age"]))
    assert (bad.line, bad.field, bad.reason) == (2, "age", "is no column of the row")
    assert prompts_of(
        PEOPLE, prompt="{{ text }} {{ years }}", select=Selection.parse(["text", "years=age"]), limit=1
    ) == ["one 36"]


def test_a_missing_column_is_a_bad_line_of_each_row_that_lacks_it():
    table = [{"text": "one"}, {"txt": "two"}, {"text": None}]
    first, bad, third = lines_of(table, prompt="Read: {{ text }}")
    assert (first.request["prompt"], third.request["prompt"]) == ("Read: one", "Read: ")
    assert (bad.line, bad.field, bad.reason) == (2, "text", "is no column of the row")
    assert bad.remedy.startswith("did you mean txt?")
    assert prompts_of(table[1:2], prompt="{% if text is defined %}{{ text }}{% else %}none{% endif %}") == ["none"]


def test_what_an_option_names_must_be_a_column():
    for ask in ({"id": "nr"}, {"select": Selection.parse(["nr"])}):
        with pytest.raises(
            InputError, match="nr: the table has no such column; the columns are id, First name, text, age"
        ):
            lines_of(PEOPLE, prompt="x", **ask)
    with pytest.raises(InputError, match="--id text: --select keeps no such column; the columns are id, words"):
        lines_of(PEOPLE, prompt="x", id="text", select=Selection.parse(["id", "words=text"]))
    lines = lines_of(PEOPLE, prompt="x", id="words", select=Selection.parse(["id", "words=text"]))
    assert [line.custom_id for line in lines] == ["one", "two", "three"]
    _, empty = lines_of([{"nr": 1}, {"nr": None}], prompt="x", id="nr")
    assert (empty.field, empty.reason) == ("nr", "has no value")


@pytest.mark.thorough(fast=9)
@pytest.mark.parametrize(
    ("prompt", "field", "said"),
    [
        ("{{ age + 1 }}", "template", "fails on the row in line 1 (TypeError)"),
        ("a\n{{ 1 // 0 }}", "template", "fails on the row in line 2 (ZeroDivisionError)"),
        ("{{ raise_exception('too young') }}", "template", "refuses the row: too young"),
        ("{{ row.__class__.__mro__ }}", "template", "refuses the row: access to attribute"),
        ("{{ ''.__class__ }}", "template", "refuses the row: access to attribute"),
        ("{{ row.pop('id') }}", "template", "refuses the row:"),
        ("{{ row.nested.x }}", "nested", "is no column of the row"),
        ("{{ text.x }}", "template", "refuses the row: 'str object' has no attribute 'x'"),
        ("{% include 'x' %}", "template", "fails on the row"),
        ("{{ 'a' * 5000000 }}", "template", "writes more than 4,194,304 characters for the row"),
        ("{% for i in range(90000) %}{{ text * 100 }}{% endfor %}", "template", "writes more than 4,194,304"),
        ("{{ 'a' * 2000000000 }}", "template", "needs too much memory"),
        ("{{ lipsum() }}", "lipsum", "is no column of the row"),
        ("{{ '\\0' }}", "prompt", "holds a NUL character"),
        ("{{ text.upper }}", "template", "gives the function upper, not what it returns"),
        ("{{ joiner }}", "template", "gives the function Joiner"),
        ("{{ 'a'.upper }}", "template", "gives the function upper"),
    ],
)
def test_a_template_that_fails_on_a_row_is_a_bad_line(prompt, field, said):
    (bad,) = lines_of(PEOPLE, prompt=prompt, limit=1)
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.field) == (2, field)
    assert said in bad.reason


def test_a_condition_that_fails_names_no_line_of_its_compiled_form():
    (bad, *_) = lines_of(PEOPLE, prompt="x", where="age > 3")
    assert (bad.field, bad.reason) == ("--where", "fails on the row (TypeError)")


@pytest.mark.parametrize(
    ("table", "ask", "said"),
    [
        (PEOPLE, {"where": "false"}, "--where is true of none of the table's 3 rows; correct it"),
        (PEOPLE, {"where": "false", "shuffle": 0, "limit": 2}, "--where is true of none of the table's 3 rows"),
        (b"id,text\n", {}, "the table has columns, and no rows below them; name a table with rows"),
    ],
)
def test_a_table_of_which_no_row_counts_is_refused_in_its_own_words(table, ask, said):
    with pytest.raises(InputError, match=said):
        lines_of(table, prompt="x", **ask)


@pytest.mark.parametrize("ask", [{"prompt": "a\n{{ self }}"}, {"prompt": "x", "where": "\n self == '1'"}])
def test_a_template_never_takes_an_object_of_jinja_for_a_column_called_self(ask):
    with pytest.raises(InputError, match=r"line 2: self is jinja2's own; a column of that name is row\.self"):
        lines_of(b"self\n1\n", **ask)


@pytest.mark.parametrize("ask", [{"prompt": "{{ row }}"}, {"prompt": "x", "where": "row|int > 0"}])
def test_a_template_never_takes_all_columns_for_a_column_called_row(ask):
    (bad,) = lines_of(b"row,a\n1,b\n", **ask)
    assert (bad.field, bad.reason) == ("row", "is all columns in a template, and not the column of that name")
    assert bad.remedy == "write row.row for the column, or rename it with --select"


def test_a_column_called_row_is_a_member_of_row():
    assert prompts_of(b"row,a\n1,b\n", prompt="{{ row.row }}{{ row['a'] }}", where="row.row == '1'") == ["1b"]
    assert prompts_of(b"a\nb\n", prompt="{{ row|length }}") == ["1"]
    assert prompts_of(b"row\n1\n", prompt="{% for row in 'ab' %}{{ row }}{% endfor %}") == ["ab"]


def test_a_fault_of_an_id_is_told_under_the_name_of_its_column():
    first, again, long = lines_of(b"key,a\nk,1\nk,2\n" + b"k" * 600 + b",3\n", prompt="{{ a }}", id="key")
    assert first.custom_id == "k"
    assert (again.field, again.reason) == ("key", "is the one of line 2")
    assert (long.field, long.reason) == ("key", "has 600 characters")


def test_bad_rows_of_a_typed_table_can_be_read_again():
    rejects = io.BytesIO()
    table = pa.table({"text": [None, "NaN"], "x": [float("nan"), float("-inf")]})
    ask = {"prompt": "{% if again is not defined %}{{ raise_exception('no') }}{% endif %}t{{ text }} {{ x }}"}
    assert len(lines_of(table, rejects, **ask)) == 2
    written = rejects.getvalue()
    assert [json.loads(line) for line in written.splitlines()] == [
        {"text": None, "x": None},
        {"text": "NaN", "x": None},
    ]
    corrected = written.replace(b"{", b'{"again": 1, ')
    assert prompts_of(corrected, **ask) == ["t ", "tNaN "]


def test_a_condition_that_is_a_function_is_refused_for_it_would_be_true_of_every_row():
    (bad, *_) = lines_of(PEOPLE, prompt="x", where="text.isdigit")
    assert (bad.field, bad.remedy) == ("--where", "call it: isdigit()")


def test_a_column_may_have_the_name_of_an_argument():
    assert prompts_of(b"self,args\n1,a\n2,b\n", prompt="{{ row.self }}{{ args }}", where="row.self == '2'") == ["2b"]


def test_rows_whose_texts_are_large_are_all_answered_a_few_at_a_time(monkeypatch):
    sizes = []
    answers = RowRenderer._answers

    def noting(self, what, encoded):
        sizes.append(len(found := answers(self, what, encoded)))
        return found

    monkeypatch.setattr(RowRenderer, "_answers", noting)
    table = [{"n": n} for n in range(12)]
    with RowRenderer(None, {"prompt": "{{ n }}{{ 'x' * 4000000 }}"}) as renderer:
        found = [json.loads(asked.answer)["prompt"] for asked in renderer.ask("fill", map(Row, range(12), table))]
    assert [text.rstrip("x") for text in found] == [str(n) for n in range(12)]
    assert max(sizes) * 4_000_000 < 2 * MAX_ANSWER_CHARS


@pytest.mark.thorough
def test_a_row_with_which_a_template_does_not_end_is_bad_alone():
    limits = RenderLimits(seconds=0.5, process=ProcessLimits(memory_bytes=500_000_000))
    table = [{"n": n} for n in (1, 2, 3)]
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    first, bad, third = lines_of(table, prompt="{% if n == 2 %}" + slow + "{% endif %}{{ n }}", limits=limits)
    assert [first.request["prompt"], third.request["prompt"]] == ["1", "3"]
    assert (bad.line, bad.field) == (2, "template")
    assert "does not come to an end with the row: its process took more than 0.5 s of processor time" in bad.reason
    with pytest.raises(InputError, match="does not come to an end with 3 rows one after the other"):
        lines_of(table * 2, prompt=slow, limits=limits)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"prompt": "a\n{{ text"}, "cannot be read: line 2"),
        ({"prompt": "x", "where": "age >"}, "cannot be read: line 1"),
        ({"prompt": "{% nothing %}"}, "Encountered unknown tag 'nothing'"),
        ({"prompt": "{{ x|y }}"}, "No filter named 'y'"),
    ],
)
def test_a_template_that_cannot_be_read_is_one_sentence(ask, said):
    with pytest.raises(InputError) as told:
        lines_of(PEOPLE, **ask)
    assert said in str(told.value)


@pytest.mark.parametrize(
    "ask",
    [
        {"prompt": "x", "messages": [{}]},
        {"system": "x"},
        {"chat": True},
        {"messages": {}},
        {"messages": []},
        {"prompt": "x", "limit": 0},
        {"id": "x"},
    ],
)
def test_what_contradicts_itself_is_refused(ask):
    with pytest.raises(ConfigurationError):
        TableAsk(**ask)


@pytest.mark.parametrize("text", ["", "a=", "=a", "a,,b", "a,b,a"])
def test_a_selection_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigurationError):
        Selection.parse([text])


def test_bad_rows_are_written_as_rows_that_can_be_submitted_again():
    rejects = io.BytesIO()
    lines_of(b"id,text\n1,one\n2\n3,thre\n", rejects, prompt="{% if id == '3' %}{{ txt }}{% endif %}{{ text }}")
    short, row = rejects.getvalue().decode().splitlines()
    assert json.loads(short) == "2"
    assert json.loads(row) == {"id": "3", "text": "thre"}
    corrected = row.replace("thre", "three").encode() + b"\n"
    assert prompts_of(corrected, prompt="{{ text }}") == ["three"]


def test_values_without_a_form_in_json_name_their_column():
    first, second = lines_of([{"a": b"\xff", "b": 1}, {"a": b"text", "b": 1}], prompt="{{ a }}")
    assert (first.line, first.field, first.reason) == (1, "a", "holds bytes that are no text")
    assert second.request["prompt"] == "text"


@pytest.mark.thorough(fast=13)
@pytest.mark.parametrize("ask", [{"prompt": "x"}, {"prompt": "x", "shuffle": 1}, {"where": "n > 0"}, {}])
@pytest.mark.parametrize("value", [b"\xff", {1, 2}, object(), {(1, 2): 3}, [[b"\xff"]]])
def test_a_row_that_cannot_be_written_as_json_is_a_bad_line_whatever_is_asked(ask, value):
    good, bad = sorted(
        lines_of([{"prompt": "x", "n": 1}, {"prompt": "x", "n": value}], **ask), key=lambda line: line.line
    )
    assert isinstance(good, NewJob)
    assert (bad.line, bad.field) == (2, "n")
    assert bad.remedy == "leave the column out, with --select"


def test_ids_are_written_as_the_rows_json_has_them_in_whatever_order_the_rows_come():
    at = datetime(2026, 11, 30, 6, 30, tzinfo=UTC)
    values = [True, 1, 2.5, "a\n", at, b"text", Decimal("1.50"), [1, "x"]]
    expected = ["true", "1", "2.5", "a\n", at.isoformat(), "text", "1.50", '[1, "x"]']
    for ask in ({}, {"shuffle": 1}):
        lines = lines_of([{"nr": value} for value in values], prompt="x", id="nr", **ask)
        assert [line.custom_id for line in sorted(lines, key=lambda line: line.line)] == expected


def facts(source, **ask):
    given = io.BytesIO(source) if isinstance(source, bytes) else source
    with TableSource(given, TableAsk(prompt="{{ id }}", **ask)) as table:
        lines = list(table.read(LineReader(SamplingParams())))
        assert all(isinstance(line, NewJob) for line in lines)
        return table.facts()["table"]


def test_the_digest_tells_tables_apart_by_their_rows():
    whole = facts(PEOPLE)
    assert whole == facts(PEOPLE.replace(b"\n", b"\r\n")) == facts(PEOPLE, where="age|int > 30")
    assert (whole["rows"], whole["is_whole"]) == (3, True)
    assert whole["digest"] != facts(PEOPLE.replace(b"36", b"37"))["digest"]
    assert whole["digest"] != facts(PEOPLE.replace(b"age", b"aged"))["digest"]
    pictures = [{"id": 1, "picture": {"bytes": b"\xff\x00", "path": None}}, {"id": 2, "picture": object()}]
    changed = [{"id": 1, "picture": {"bytes": b"\xff\x01", "path": None}}, {"id": 2, "picture": object()}]
    only = {"select": Selection.parse(["id"])}
    assert facts(pictures, **only) == facts(pictures, **only)
    assert facts(pictures, **only)["digest"] != facts(changed, **only)["digest"]
    assert facts(pictures, **only)["digest"] != facts([pictures[0], {"id": 3, "picture": object()}], **only)["digest"]
    part = facts([{"id": n} for n in range(5000)], limit=2)
    assert not part["is_whole"]
    assert part["rows"] < 5000


@pytest.mark.thorough
def test_memory_is_flat_however_many_rows_there_are():
    def table(count):
        return ({"id": number, "text": "x" * 2000} for number in range(count))

    def peak(count, **ask):
        tracemalloc.start()
        try:
            with TableSource(table(count), TableAsk(prompt="{{ text }}", **ask)) as source:
                for _ in source.read(LineReader(SamplingParams())):
                    pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for ask in ({}, {"where": "id > 3"}, {"shuffle": 1}):
        assert peak(6_000, **ask) < 1.5 * peak(1_500, **ask) + 2_000_000
