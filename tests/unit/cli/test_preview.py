"""``preview``: the first prompts as they would be stored, with token counts; and nothing is stored."""

from __future__ import annotations

import json

import pytest

from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.tiny_models import tokenizer


@pytest.fixture
def model(tmp_path):
    return save_checkpoint(tmp_path / "tiny")


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,text\na,Good\nb,Bad\nc,Fair\nd,Fine\n", encoding="utf-8")
    return path


def test_prompts_are_shown_with_their_tokens_and_nothing_is_stored(helix, reviews, model):
    ask = ("--prompt", "Mood of {{ text }}:", "--id", "id", "--target", model)
    result = helix("preview", reviews, *ask, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    texts = ["Mood of Good:", "Mood of Bad:", "Mood of Fair:"]
    counts = [len(tokenizer()(text)["input_ids"]) for text in texts]
    assert [(one["line"], one["custom_id"], one["prompt"], one["tokens"]) for one in told["prompts"]] == [
        (line, name, text, count) for line, name, text, count in zip((2, 3, 4), "abc", texts, counts, strict=True)
    ]
    assert (told["has_more"], told["invalid"], told["target_model"]) == (True, [], str(model))
    assert told["reading"] == "CSV, UTF-8, commas between columns"
    shown = helix("preview", reviews, *ask, "--rows", "9")
    assert f"line 5 d: {len(tokenizer()('Mood of Fine:')['input_ids'])} tokens\nMood of Fine:\n" in shown.stdout
    assert "These are all lines. Nothing was stored." in shown.stderr
    assert json.loads(helix("list", "--json").stdout) == []


def test_lines_are_previewed_as_tables_are(helix, prompts, model):
    told = json.loads(helix("preview", prompts(5), "--rows", "2", "--target", model, "--json").stdout)
    assert [one["prompt"] for one in told["prompts"]] == ["Question 1?", "Question 2?"]
    assert told["has_more"]


def test_what_the_model_cannot_take_and_bad_lines_are_told(helix, prompts, model):
    path = prompts(lines=['{"prompt": [99999]}', '{"promt": "x"}', '{"prompt": "y"}'])
    result = helix("preview", path, "--target", model, "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [bad["line"] for bad in told["invalid"]] == [2]
    foreign, plain = told["prompts"]
    assert foreign["tokens"] is None
    assert "outside the model's vocabulary" in foreign["reason"]
    assert plain["tokens"] == 1
    shown = helix("preview", path, "--target", model)
    assert "did you mean prompt?" in shown.stderr
    assert "token ids: 99999" in shown.stdout


def test_without_the_model_prompts_are_shown_without_counts(helix, prompts, tmp_path):
    result = helix("preview", prompts(1), "--target", tmp_path / "nothing")
    assert result.exit_code == 0
    assert "Question 1?" in result.stdout
    assert "No token counts: " in result.stderr


def test_a_fake_engine_needs_no_model(helix, prompts, monkeypatch):
    monkeypatch.setenv("HELIX_ENGINE", "fake")
    result = helix("preview", prompts(2), "--target", "owner/no-such-model", "--json")
    assert result.exit_code == 0, result.stderr
    assert [one["tokens"] for one in json.loads(result.stdout)["prompts"]] == [2, 2]
    assert not result.stderr
