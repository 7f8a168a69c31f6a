"""The check of a JSON schema: what is refused, at which path, and what is kept exactly."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import jsonschema
import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import grammar_limits, grammar_text
from helix_jobs.errors import InvalidFieldError, InvalidFieldsError
from helix_jobs.intake.pattern_check import check_pattern
from helix_jobs.intake.schema_check import check_schema
from helix_jobs.intake.schema_keywords import FORMATS

BYTES = llguidance.LLTokenizer("byte")
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def faults(schema: dict) -> list[tuple[str, str]]:
    """Path and reason of each fault."""
    try:
        check_schema(schema, "s")
    except InvalidFieldsError as error:
        return [(fault.field, fault.reason) for fault in error.faults]
    except InvalidFieldError as error:
        return [(error.field, error.reason)]
    return []


@pytest.mark.parametrize(
    "word",
    ["not", "if", "then", "else", "dependencies", "dependentSchemas", "dependentRequired", "uniqueItems", "contains",
     "minContains", "maxContains", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "contentEncoding",
     "contentMediaType", "contentSchema", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor",
     "nullable", "extends", "disallow", "divisibleBy", "x-guidance"],
)  # fmt: skip
@pytest.mark.parametrize("draft", [None, "http://json-schema.org/draft-04/schema#", DRAFT_7])
def test_a_word_that_is_not_kept_is_refused_at_its_path_in_every_draft(word, draft):
    """The library lets pass what the declared draft does not know, and takes options from x-guidance."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", word: True}}}}
    if draft is not None:
        schema["$schema"] = draft
    assert [path for path, _ in faults(schema)] == [f"s.properties.a.items.{word}"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"a": {"format": "path"}}}, "s.properties.a.format"),
        ({"format": 1}, "s.format"),
        ({"anyOf": [{}, {"pattern": "(?=a)"}]}, "s.anyOf[1].pattern"),
        ({"pattern": "[a[b]]"}, "s.pattern"),
        ({"pattern": ["a"]}, "s.pattern"),
        ({"patternProperties": {"(?!a)b": {}}}, "s.patternProperties.(?!a)b"),
        ({"type": "text"}, "s.type"),
        ({"type": []}, "s.type"),
        ({"type": "object", "required": True}, "s.required"),
        ({"properties": []}, "s.properties"),
        ({"properties": {"a": 1}}, "s.properties.a"),
        ({"anyOf": []}, "s.anyOf"),
        ({"allOf": {}}, "s.allOf"),
        ({"items": "string"}, "s.items"),
        ({"enum": []}, "s.enum"),
        ({"enum": ["a", {"b": ["\x01"]}]}, "s.enum[1].b[0]"),
        ({"enum": ["a" * 5000]}, "s.enum[0]"),
        ({"const": 2**53 + 1}, "s.const"),
        ({"minimum": "0"}, "s.minimum"),
        ({"maximum": 10**400}, "s.maximum"),
        ({"minLength": 1.0}, "s.minLength"),
        ({"maxItems": -1}, "s.maxItems"),
        ({"minItems": True}, "s.minItems"),
        ({"multipleOf": 0}, "s.multipleOf"),
        ({"multipleOf": 99_999_989}, "s.multipleOf"),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 101}, {"multipleOf": 103}]}, "s"),
        ({"minProperties": 2}, "s.minProperties"),
        ({"minProperties": 3, "required": ["a"]}, "s.minProperties"),
        ({"$ref": 1}, "s.$ref"),
        ({"$ref": "#/$defs/none"}, "s.$ref"),
        ({"$ref": "#none"}, "s.$ref"),
        ({"$ref": "https://example.org/a.json"}, "s.$ref"),
        ({"$ref": "file:///etc/passwd"}, "s.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, "s.$defs.a.not"),
        ({"$ref": "#/elsewhere/1", "elsewhere": [{}, {"not": {}}]}, "s.elsewhere[1].not"),
        ({"$ref": "#x", "$defs": {"a": {"$anchor": "x", "not": {}}}}, "s.$defs.a.not"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {"$id": "a.json"}, "b": {"$id": "b.json"}}}, "s.$defs.b.$id"),
        ({"$schema": DRAFT_7, "$ref": "#/definitions/a", "maximum": 3, "definitions": {"a": {}}}, "s.maximum"),
        ({"$schema": DRAFT_7, "prefixItems": [{}]}, "s.prefixItems"),
        ({"prefixItems": [{}], "additionalItems": False}, "s.prefixItems"),
        ({"prefixItems": [{}], "items": [{}]}, "s.prefixItems"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"minLength": 2}]}}}, "s.properties.a.oneOf"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": [{}, {}]}}}, "s.$defs.a.oneOf"),
        ({"properties": {"a": {"minProperties": 1, "properties": {"b": {}}}}}, "s.properties.a.minProperties"),
        ({"type": "object", "properties": {"a": {"minLength": 3, "maxLength": 1, "type": "string"}}, "required": ["a"]},
         "s.properties.a.minLength"),
        ({"patternProperties": {"^a": {}, "b$": {}}}, "s.patternProperties"),
        ({"$ref": "#"}, "s"),
        ({"$ref": "#/$defs/0", "$defs": {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(150)}},
         "s.$defs.99.items"),
    ],
)  # fmt: skip
def test_the_path_leads_to_the_fault(schema, path):
    found = faults(schema)
    assert [field for field, _ in found][:1] == [path] or path in [field for field, _ in found], found
    assert all(reason for _, reason in found)


def test_all_faults_of_a_schema_are_listed():
    schema = {"properties": {"a": {"not": {}}, "b": {"type": "text"}, "c": {"minLenght": 3}}}
    assert [path for path, _ in faults(schema)] == [
        "s.properties.a.not",
        "s.properties.b.type",
        "s.properties.c.minLenght",
    ]


@pytest.mark.parametrize(
    "word", ["requred", "minLenght", "maxlength", "additionalproperties", "additional_properties", "anyof", "types"]
)
def test_a_misspelt_word_is_refused_and_named(word):
    with pytest.raises(InvalidFieldError, match=rf"s\.{word}: is no word of JSON Schema; did you mean"):
        check_schema({"type": "object", word: 1}, "s")


def test_annotations_and_words_of_ones_own_pass():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.org/person.json",
        "$comment": "c",
        "title": "Person",
        "description": "d",
        "default": {},
        "examples": [{}],
        "deprecated": False,
        "readOnly": True,
        "x-order": 1,
        "_format": "date",
        "markdownDescription": "m",
        "discriminator": {"propertyName": "kind"},
        "type": "object",
        "properties": {
            "not": {"type": "string"},
            "count": {"type": "integer", "format": "int32", "uniqueItems": False, "nullable": False},
        },
        "$defs": {"unused": {"not": {}}},
    }
    stored = json.loads(check_schema(schema, "s"))
    assert "uniqueItems" not in stored["properties"]["count"]
    assert stored["properties"]["not"] == {"type": "string"}


def test_the_order_of_properties_is_kept():
    stored = check_schema({"type": "object", "properties": {"z": {}, "a": {}, "m": {}}}, "s")
    assert list(json.loads(stored)["properties"]) == ["z", "a", "m"]


@pytest.mark.parametrize("pattern", [r"^\[[a-z\[\]&-]+\]$", r"^[^\[]+$", r"[\-\-a]", r"^a{2,3}|b$", r"\d+\.\d{2}"])
def test_patterns_that_mean_the_same_everywhere_pass(pattern):
    check_pattern(pattern, "p")


@pytest.mark.parametrize("pattern", ["[[:alpha:]]", "[a&&b]", "[a--b]", "[a~~b]", "[^[a]]", "[]a[]"])
def test_classes_that_others_read_in_another_way_are_refused(pattern):
    with pytest.raises(InvalidFieldError):
        check_pattern(pattern, "p")


# Schemas made to cost time, memory or stack. Some are kept; what matters is that the check of each ends soon.
HOSTILE = r"""
deep = {}
for _ in range(400): deep = {"items": deep}
chain = {f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(2000)}
doubling = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)} | {"a40": {"type": "object"}}
options = [{"anyOf": [{"properties": {f"k{i}_{j}": {}}, "type": "object"} for j in range(6)]} for i in range(8)]
schemas = [
    {"type": "string", "minLength": 10**9}, {"type": "string", "maxLength": 10**18}, {"maxItems": 10**9}, deep,
    {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}, {"minProperties": 1},
    {"enum": [f"value {i}" for i in range(20_000)]}, {"enum": ["x" * 250_000]}, {"const": ["x"] * 10_000},
    {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(10_000)}},
    {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(900)}},
    {"type": "object", "patternProperties": {f"^{i}a.*$": {} for i in range(900)}},
    {"type": "string", "pattern": "^(((a{1,100}){1,100}){1,100}){1,100}$"}, {"type": "string", "pattern": "(.*a){40}"},
    {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000}, {"type": "string", "pattern": "a|" * 50_000},
    {"type": "string", "pattern": "^$|(^(?:\\S+\\s+){0,99}\\S+$)", "minLength": 1, "maxLength": 5000},
    {"allOf": options}, {"$ref": "#/$defs/a0", "$defs": chain | {"a2000": {}}},
    {"$ref": "#/$defs/a0", "$defs": doubling}, {"$ref": "#"}, {"allOf": [{"$ref": "#"}]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"type": "integer", "multipleOf": 99_999_989}, {"allOf": [{"multipleOf": p} for p in (9973, 9967, 9949)]},
    {"minimum": 10**4000}, {"oneOf": [{"properties": {"t": {"const": i}}, "required": ["t"]} for i in range(1000)]},
    {"properties": {f"p{i}": {"oneOf": [{}, {}]} for i in range(900)}}, {"$ref": "#/" + "a/" * 100_000},
]
"""


@pytest.mark.thorough
def test_a_hostile_schema_is_checked_in_bounded_time_and_memory():
    """All of them together, in a process that the system ends if they take ten times as much as they should."""
    script = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.constraint_fields import read_constraint
{HOSTILE}
for schema in schemas:
    try:
        read_constraint({{"guided_json": schema}})
    except InvalidFieldError as error:
        assert len(str(error)) < 1000
print(len(schemas))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 25


SHORT = st.integers(0, 3)
PATTERNS = st.sampled_from(["^[a-c]{1,3}$", "x|^y", "\\d$", "ü+", "^a?$"])
VALUES = st.sampled_from(["x", "y\n", 1, 2.5, True, None, [1], {"k": "v"}])
BOUNDS = {"minimum": st.integers(-20, 5), "maximum": st.integers(6, 120), "multipleOf": st.sampled_from([1, 0.5, 3])}


def test_the_deepest_schema_that_is_taken_fits_into_the_stack_of_a_thread():
    """The library ends its process where the stack does; Windows gives a thread 2 MB."""
    script = """
import json, threading
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import complaint
from helix_jobs.intake.constraint_fields import read_constraint
def run():
    for step in ({"items": 0}, {"type": "object", "properties": {"a": 0}}, {"allOf": [0, {}]}, {"anyOf": [{}, 0]}):
        text = json.dumps(step)
        defs = {f"d{i}": json.loads(text.replace("0", json.dumps({"$ref": f"#/$defs/d{i + 1}"}))) for i in range(99)}
        stored = read_constraint({"guided_json": {"$ref": "#/$defs/d0", "$defs": defs | {"d99": {}}}})
        assert complaint(Constraint.from_mapping(stored)) is None
    rules = "".join(f'r{i}: r{i + 1} "x"' + chr(10) for i in range(240))
    read_constraint({"grammar": "start: r0" + chr(10) + rules + 'r240: "a"'})
    print("done")
threading.stack_size(2 << 20)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "done\n", (done.returncode, done.stderr[-2000:])


NAMES = st.sampled_from(["a", "b", "c", "na me", "ü", 'q"'])
STRING = {"type": st.just("string")}
LEAVES = st.one_of(
    st.fixed_dictionaries(STRING, optional={"minLength": SHORT, "maxLength": st.integers(3, 6)}),
    st.fixed_dictionaries({**STRING, "format": st.sampled_from(FORMATS)}),
    st.fixed_dictionaries({**STRING, "pattern": PATTERNS}),
    st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional=BOUNDS),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1)}),
    st.fixed_dictionaries({"const": VALUES}),
    st.just({"type": ["null", "boolean"]}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
            optional={
                "required": st.lists(NAMES, max_size=2, unique=True),
                "additionalProperties": st.booleans() | inner,
                "minProperties": st.integers(0, 2),
                "maxProperties": st.integers(2, 4),
                "patternProperties": st.dictionaries(st.sampled_from(["^a", "^b", "c"]), inner, max_size=2),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={
                "prefixItems": st.lists(inner, min_size=1, max_size=2),
                "minItems": st.integers(0, 2),
                "maxItems": st.integers(2, 3),
            },
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=5,
)


def made_up_answer(text: str, choose: random.Random) -> object:
    """One answer that the grammar allows, byte by byte at random; None if it does not end in time."""
    matcher = llguidance.LLMatcher(
        BYTES, grammar_text(Constraint("json_schema", text)), log_level=0, limits=grammar_limits()
    )
    data = bytearray()
    for _ in range(400):
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed or (matcher.is_accepting() and choose.random() < 0.3):
            break
        # Ends of strings, lists and objects come often enough to end the answer.
        ends = [byte for byte in allowed if byte in b'"}],']
        data.append(choose.choice(ends if ends and choose.random() < 0.5 else allowed))
        assert matcher.consume_token(data[-1])
    return json.loads(data) if matcher.is_accepting() else None


@given(SCHEMAS, st.integers())
def test_whatever_the_grammar_of_a_kept_schema_allows_is_valid(schema, seed):
    """Against another implementation of JSON Schema, one that shares nothing with the grammar library."""
    try:
        text = check_schema(schema, "s")
    except InvalidFieldError:
        return
    answer = made_up_answer(text, random.Random(seed))
    if answer is not None:
        jsonschema.validate(answer, json.loads(text), cls=jsonschema.Draft202012Validator)
