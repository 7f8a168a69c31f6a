"""``helix retry`` of chosen jobs, and its options that exclude each other."""

from __future__ import annotations

import json


def test_chosen_jobs_are_queued_again(helix, submitted, finish):
    batch = submitted(4)
    finish(batch, succeeded=2, failed=1)
    result = helix("retry", batch, "--where", "completion_tokens = 10 AND line < 2")
    assert "1 job queued again. Follow with: " in result.stdout
    assert json.loads(helix("status", batch, "--json").stdout)["counts"]["queued"] == 2
    nothing = helix("retry", batch, "--invalid")
    assert "Nothing to retry: no job of this batch that has ended matches." in nothing.stdout
    value = json.loads(helix("retry", batch, "--where", "error_code = 'prompt_too_long'", "--json").stdout)
    assert value == {"id": batch, "queued": 1}


def test_a_wrong_condition_is_named(helix, submitted):
    result = helix("retry", submitted(1), "--where", "prize > 3")
    assert result.exit_code == 2
    assert "the condition has no column prize" in result.stderr


def test_truncated_is_another_name_of_cut(helix, submitted, finish):
    batch = submitted(1)
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=256)
    assert "1 job submitted again" in helix("retry", batch, "--truncated", "--max-tokens", 1000).stderr


def test_options_that_exclude_each_other(helix, submitted):
    batch = submitted(1)
    for options in (("--cut",), ("--max-tokens", 9), ("--cut", "--max-tokens", 9, "--invalid")):
        result = helix("retry", batch, *options)
        assert result.exit_code == 2
        assert "--cut" in result.stderr
