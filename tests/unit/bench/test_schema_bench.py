"""``helix bench schemas`` and ``structured``: what they count, from the command line, on a tiny model."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helix_jobs.bench.extraction import ENDLESS_RECORDS, ONE_RECORD, RECORD, extraction_messages
from helix_jobs.bench.schemas import SchemaBench
from helix_jobs.bench.spelling import Spelling, spell
from helix_jobs.cli.group import cli
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.intake.constraint_fields import read_constraint
from tests.unit.engine.grammar_models import json_tokenizer, vocab_size
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "size": {"type": "number", "minimum": 0}},
    "required": ["name"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tiny = tiny_model(vocab_size=vocab_size(), max_position_embeddings=1024)
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", tiny, json_tokenizer())


def run(*arguments: object):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    ("value", "spelling", "text"),
    [
        ({"name": "a", "age": 1}, Spelling.AS_WRITTEN, '{"name":"a","age":1}'),
        ({"age": 1, "name": "a"}, Spelling.OTHER, '{"name":"a","age":1}'),
        ({"free": [{}], "size": 1e-7, "age": 3.0, "name": "a"}, Spelling.OTHER,
         '{"name":"a","age":3,"size":0.0000001,"free":[{}]}'),
        ({"age": 1}, Spelling.NONE, None),
        ({"name": "a", "age": 1.5}, Spelling.NONE, None),
        ({"size": -1, "name": "a"}, Spelling.NONE, None),
        ([], Spelling.NONE, None),
    ],
)  # fmt: skip
def test_a_value_is_spelt_as_the_grammar_takes_it(value, spelling, text):
    found = spell(Constraint("json_schema", json.dumps(PERSON)), value)
    assert found == (spelling, text)
    if text is not None:
        assert json.loads(text) == value


def test_names_are_tried_in_the_order_of_the_object_that_has_them():
    """The schema lists the same names in another order elsewhere, and each object has too many for all orders."""
    names = [f"n{number}" for number in range(9)]
    orders = {"a": [*names, "only a"], "b": ["only b", *reversed(names)]}
    objects = {
        side: {"type": "object", "properties": {name: {"type": "integer"} for name in order}}
        for side, order in orders.items()
    }
    constraint = Constraint("json_schema", json.dumps({"type": "object", "properties": objects}))
    value = {side: dict.fromkeys(reversed(orders[side]), 1) for side in ("b", "a")}
    spelling, text = spell(constraint, value)
    assert spelling is Spelling.OTHER
    assert text is not None
    assert json.loads(text) == value
    assert {side: list(json.loads(text)[side]) for side in ("a", "b")} == orders


def test_a_long_value_takes_no_tries_but_those_that_fail():
    items = [{"age": number, "name": "a"} for number in range(500)]
    spelling, text = spell(Constraint("json_schema", json.dumps({"type": "array", "items": PERSON})), items)
    assert spelling is Spelling.OTHER
    assert text is not None
    assert json.loads(text) == items


@pytest.mark.parametrize(
    ("value", "spelling", "text"),
    [
        ({"name": "a", "age": 3.0}, Spelling.NONE, None),
        ({"name": "a", "size": 3.0}, Spelling.AS_WRITTEN, '{"name":"a","size":3.0}'),
        ({"size": 1e-7, "name": "a"}, Spelling.OTHER, '{"name":"a","size":0.0000001}'),
    ],
)
def test_a_number_with_a_fraction_is_no_integer_in_draft_4(value, spelling, text):
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", **PERSON}
    assert spell(Constraint("json_schema", json.dumps(schema)), value) == (spelling, text)


def test_schemas_are_counted_by_what_came_of_them(model, tmp_path):
    cases = {
        "kept": (PERSON, [({"age": 1, "name": "a"}, True), ({"name": "a"}, True), ({"age": 1}, False)]),
        "wrong": ({"type": "null"}, [("x", True), (None, False)]),
        "refused": ({"not": {}}, [(1, True)]),
        "misspelt": ({"requred": ["a"]}, []),
    }
    for name, (schema, tests) in cases.items():
        text = json.dumps({"schema": schema, "tests": [{"data": data, "valid": valid} for data, valid in tests]})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    out = run("schemas", tmp_path, "--tokenizer", model, "--json")
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    assert (report["schemas"], report["compiled"], report["complete"]) == (4, 2, True)
    assert report["refused"] == {"not": 1, "a misspelt word": 1}
    assert (report["as_written"], report["respelt"], report["invalid_refused"]) == (1, 1, 1)
    assert report["valid_refused"] == ["wrong 0"]
    assert report["invalid_accepted"] == ["wrong 1"]
    assert report["mask_seconds"]["p50"] > 0
    shown = run("schemas", tmp_path, "--tokenizer", model)
    assert "invalid, but accepted: wrong 1" in shown.stdout


def test_what_is_forced_may_be_written_in_other_tokens(tmp_path):
    """Of the forced ``"}}`` the mask allows ``"`` alone; the tokenizer writes ``"}`` where ``},{`` follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("}", ","), ("},", "{"), ("}", "}"), ('"', "}")]
    vocabulary = {text: number for number, text in enumerate(["<eos>", *alphabet, *map("".join, merges)])}
    rules = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<eos>")
    inner = {"type": "object", "properties": {"a": {"enum": ["flat"]}}, "additionalProperties": False}
    outer = {"type": "object", "properties": {"b": inner}, "additionalProperties": False}
    test = {"data": [{"b": {"a": "flat"}}] * 3, "valid": True}
    case = {
        "schema": {"type": "array", "items": outer},
        "tests": [test, {"data": [{"b": {"a": "fla"}}], "valid": False}],
    }
    file = tmp_path / "forced.json"
    file.write_text(json.dumps(case), encoding="utf-8")
    bench = SchemaBench([file], TokenTable.of(fast, len(fast), (0,)).build(), lambda _line: None)
    bench.run()
    report = bench.report()
    assert (report.as_written, report.valid_refused, report.invalid_refused) == (1, (), 1)


def test_a_folder_without_schemas_is_refused(model, tmp_path):
    assert "holds no .json files" in run("schemas", tmp_path, "--tokenizer", model).output
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    assert "is no schema with tests" in run("schemas", tmp_path, "--tokenizer", model).output


def test_the_built_in_schemas_are_ones_that_a_line_may_have():
    for constraint in (ONE_RECORD, ENDLESS_RECORDS):
        assert read_constraint({"guided_json": constraint.value}) is not None
    asked = {extraction_messages(number)[0]["content"] for number in range(100)}
    assert len(asked) == 100
    assert all(name in text for name in RECORD["properties"] for text in asked)


@pytest.mark.thorough
def test_extraction_is_measured_with_and_without_a_schema(model):
    out = run("structured", "--target", model, "--draft", "lookup", "--batch-sizes", "2", "--max-tokens", 16,
              "--repeat", 2, "--device", "cpu", "--json")  # fmt: skip
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    assert [(pair["name"], pair["batch_size"], pair["speculation"]) for pair in report["pairs"]] == [
        ("extraction", 2, "lookup auto"),
        ("half", 32, "off"),
    ]
    for pair, ratios in zip(report["pairs"], report["ratios"], strict=True):
        assert [len(pair["plain"]), len(pair["held"])] == [2, 2]
        assert not pair["plain"][0]["failed"]
        assert not pair["held"][0]["failed"]
        assert ratios["rate_ratio"] > 0
        assert ratios["time_ratio"] > 0
    extraction, half = report["pairs"]
    assert extraction["held"][0]["accepted_forced_tokens"] == extraction["held"][0]["forced_tokens"] > 0
    assert extraction["plain"][0]["forced_tokens"] == half["held"][0]["forced_tokens"] == 0
    # All rows of the half batch run to their limit, with a schema or without.
    plain, half = report["pairs"][1]["plain"][0], report["pairs"][1]["held"][0]
    assert plain["output_tokens"] == half["output_tokens"] == 32 * 16
    sides = [line.split(": ")[1].split(" ...")[0] for line in out.stderr.splitlines() if line.startswith("half, ")]
    # Warming up, and two rounds: who comes first takes turns.
    assert sides == ["plain", "with a schema", "with a schema", "plain", "plain", "with a schema"]


@pytest.mark.thorough
def test_the_time_with_a_schema_is_told_before_its_rate(model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a slow machine's figures are wide, and a narrow table folds its titles
    out = run("structured", "--target", model, "--draft", "lookup", "--batch-sizes", "2", "--max-tokens", 16,
              "--repeat", 1, "--device", "cpu")  # fmt: skip
    assert out.exit_code == 0, out.output
    header, plain, held, *_ = out.stdout.splitlines()[1:]
    assert header.split()[-2:] == ["FORCED", "ACCEPTED"]
    accepted, of, forced = held.split()[-3:]
    assert (accepted, of) == (forced, "of")
    assert "of" not in plain.split()
    told = [line for line in out.stdout.splitlines() if "with a schema" in line]
    assert len(told) == 2
    assert all(0 < line.index("times as fast done") < line.index("times the tokens/s") for line in told)
