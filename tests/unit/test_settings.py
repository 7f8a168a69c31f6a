"""HELIX_* variables in, settings out, and back for a child process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import Settings

DEFAULTS = Settings.from_environment({})


def test_what_speculates_by_default():
    assert (DEFAULTS.draft_model, DEFAULTS.speculation_depth) == ("lookup+int8", None)
    assert (DEFAULTS.dtype, DEFAULTS.compile) == ("auto", "auto")


def test_batch_slots_and_token_budget_are_the_device_s_unless_they_are_set():
    assert (DEFAULTS.max_batch_size, DEFAULTS.token_budget) == (None, None)
    settings = Settings.from_environment({"HELIX_MAX_BATCH_SIZE": "7", "HELIX_TOKEN_BUDGET": "2048"})
    assert (settings.max_batch_size, settings.token_budget) == (7, 2048)
    assert Settings.from_environment(settings.to_environment()) == settings
    with pytest.raises(ConfigurationError, match="HELIX_TOKEN_BUDGET is '15'; give a whole number from 16 to 1048576"):
        Settings.from_environment({"HELIX_TOKEN_BUDGET": "15"})


@pytest.mark.parametrize(
    ("text", "depth"), [("auto", None), ("AUTO", None), ("", None), (" ", None), ("0", 0), ("4", 4), ("16", 16)]
)
def test_depths(text, depth):
    assert Settings.from_environment({"HELIX_SPECULATION_DEPTH": text}).speculation_depth == depth


@pytest.mark.parametrize("text", ["17", "-1", "4.0", "none", "automatic"])
def test_other_depths_are_refused_with_what_is_accepted(text):
    with pytest.raises(ConfigurationError, match=r"HELIX_SPECULATION_DEPTH is .*from 0 to 16, or auto"):
        Settings.from_environment({"HELIX_SPECULATION_DEPTH": text})


@pytest.mark.parametrize(
    ("name", "field", "good"), [("HELIX_DTYPE", "dtype", "int8"), ("HELIX_COMPILE", "compile", "off")]
)
def test_choices(name, field, good):
    assert getattr(Settings.from_environment({name: good.upper()}), field) == good
    with pytest.raises(ConfigurationError, match=rf"{name} is 'int4'; use one of auto, .*{good}"):
        Settings.from_environment({name: "int4"})


@pytest.mark.parametrize(
    ("text", "model", "drafters"),
    [
        ("lookup+int8", "int8", ("lookup",)),
        ("lookup+Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", ("lookup",)),
        ("lookup", "none", ("lookup",)),
        ("lookup+none", "none", ("lookup",)),
        ("int8", "int8", ()),
        ("none", "none", ()),
        ("a/lookup+b", "a/lookup+b", ()),
    ],
)
def test_drafts(text, model, drafters):
    settings = Settings.from_environment({"HELIX_DRAFT_MODEL": text})
    assert DraftSpec.parse(settings.draft_model) == DraftSpec(model, drafters)


@pytest.mark.parametrize("depth", [None, 0, 7])
def test_a_child_process_reads_the_same(depth, tmp_path):
    settings = replace(
        DEFAULTS, home=tmp_path, speculation_depth=depth, draft_model="lookup", dtype="int8", compile="off"
    )
    environment = settings.to_environment()
    assert environment["HELIX_SPECULATION_DEPTH"] == ("" if depth is None else str(depth))
    assert Settings.from_environment(environment) == settings


def test_adapters_are_directories_by_name_in_their_order(tmp_path):
    text = f"sql={tmp_path}/a, org/fr={tmp_path}/b=c"
    settings = Settings.from_environment({"HELIX_ADAPTERS": text})
    assert settings.adapters == (("sql", tmp_path / "a"), ("org/fr", tmp_path / "b=c"))
    assert Settings.from_environment(settings.to_environment()).adapters == settings.adapters
    assert DEFAULTS.adapters == ()
    assert DEFAULTS.to_environment()["HELIX_ADAPTERS"] == ""


@pytest.mark.parametrize("text", ["sql", "=/a", "sql=", "a b=/c", "a=/b,", "a=/b,/c"])
def test_adapters_without_name_or_directory_are_refused(text):
    with pytest.raises(ConfigurationError, match=r"HELIX_ADAPTERS has .*; give NAME=DIRECTORY"):
        Settings.from_environment({"HELIX_ADAPTERS": text})


def test_two_adapters_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="HELIX_ADAPTERS has two of the name 'a'"):
        Settings.from_environment({"HELIX_ADAPTERS": "a=/b,a=/c"})
