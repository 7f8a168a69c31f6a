"""docs/models.md says which models are served, from which files: as the code's own tables do."""

from __future__ import annotations

import pytest

from helix_jobs.engine.loading.gguf_registry import gguf_architectures
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.loading.served_types import served_types, types_not_served
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from tests.acceptance.readme_text import PAGES, code_words
from tests.unit.engine.gguf_conversion import CONVERSIONS
from tests.unit.engine.tiny_models import tiny_config

pytestmark = pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="transformers 4 lacks many of these families")

ROWS = PAGES["models"].rows("The models that people ask for most")
SERVED = {one.model_type for one in served_types()}


def families_of(model_type: str) -> set[str]:
    """The families that compute a type: its own, or those of the language model in it."""
    tower = TEXT_TOWERS.get(model_type)
    return {model_type} if tower is None else set(tower.families.values())


def is_read_quantised(model_type: str) -> bool:
    projections = [one for family in families_of(model_type) for one in describe(tiny_config(family)).projections]
    return not any(one.is_transposed for one in projections)


def test_all_forty_are_there():
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 41)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_a_line_says_what_the_code_does(row):
    _, _, types, served, quantised, gguf, tested = row
    own, words = code_words(types), set(code_words(gguf))
    if served != "yes":
        refused = types_not_served()
        assert [f"no: {refused[model_type]}" for model_type in own] == [served]
        assert (quantised, gguf, tested) == ("no", "no", "its refusal")
        return
    assert set(own) <= SERVED
    assert quantised.startswith("yes")
    assert set(code_words(quantised)) == {model_type for model_type in own if not is_read_quantised(model_type)}
    names = {family: gguf_architectures(family) for model_type in own for family in families_of(model_type)}
    assert words <= set().union(*names.values())
    assert all(names[family] & words for family in names if names[family])
    assert bool(words) == (gguf != "no")
    assert tested.startswith("small models")


def test_the_table_of_types_says_what_the_code_does():
    """Every served type has a line, and its GGUF column names those that are served from such files."""
    rows = PAGES["models"].rows("Which models are served")
    lines = [row for row in rows if len(row) == 3 and row[0].startswith("`")]
    assert {model_type for types, _, _ in lines for model_type in code_words(types)} == SERVED
    for types, _, gguf in lines:
        own = code_words(types)
        expected = {one for one in own if any(gguf_architectures(family) for family in families_of(one))}
        excepted = set(code_words(gguf.partition("yes, not ")[2]))
        told = set(own) - excepted if gguf.startswith("yes") else set(code_words(gguf)) & set(own)
        assert told == expected, types


def test_every_architecture_on_the_page_has_a_file_that_is_tried():
    """Those of the first families are made in tests of their own."""
    named = {word for row in ROWS for word in code_words(row[5])}
    elsewhere = {"llama", "qwen2", "qwen3", "phi3", "qwen2moe", "qwen3moe", "olmoe"}
    assert named <= {conversion.partition(":")[0] for conversion in CONVERSIONS} | elsewhere
