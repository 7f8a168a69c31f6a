"""``plan`` counts what the answer cache spares, as a worker would."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.worker_box import prompts

if TYPE_CHECKING:
    from tests.worker_box import Box


def planned(box: Box, lines: list[str], *options: str, code: int = 0) -> dict[str, Any]:
    file = box.temporary / "lines.jsonl"
    file.write_text("".join(f"{json.dumps({'prompt': line})}\n" for line in lines), encoding="utf-8")
    done = box.run(sys.executable, "-m", "helix_jobs", "plan", str(file), "--json", *options)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_stored_answers_and_equal_lines_are_not_computed(box: Box) -> None:
    known = prompts(40)
    batch = box.submit(*known, cache=None)
    worker = box.start_worker()
    box.wait_states(batch, succeeded=40)
    worker.kill()
    lines = [*known[:30], *(f"new {number}" for number in range(10)), "new 3", "new 4"]
    told = planned(box, lines)
    assert (told["lines"], told["from_cache"], told["prompt_tokens"]) == (42, 32, 20)
    assert 0 < told["trial"]["lines"] <= 10
    whole = planned(box, lines, "--no-cache")
    assert (whole["lines"], whole["from_cache"], whole["prompt_tokens"]) == (42, 0, 30 * 6 + 24)
    sampled = planned(box, lines, "--temperature", "1")
    assert (sampled["lines"], sampled["from_cache"]) == (42, 0)
    other = planned(box, lines, "--max-tokens", "7")  # a different request; equal lines are equal all the same
    assert (other["lines"], other["from_cache"]) == (42, 2)
    spared = planned(box, known)
    assert (spared["lines"], spared["from_cache"], spared["prompt_tokens"]) == (40, 40, 0)
    assert (spared["seconds"]["median"], spared["completion_tokens"], spared["trial"]["lines"]) == (0, 0, 0)


def test_a_plan_makes_no_database_and_changes_none(embedded_box: Box) -> None:
    file = embedded_box.database().sqlite_file
    assert file is not None
    file.unlink(missing_ok=True)
    told = planned(embedded_box, ["one line", "one line", "another line"])
    assert (told["lines"], told["from_cache"]) == (3, 1)
    assert not file.exists()


def test_an_equal_line_of_one_that_no_model_can_take_is_told_like_it(embedded_box: Box) -> None:
    told = planned(embedded_box, ["short", "word " * 5000, "word " * 5000])
    assert (told["lines"], told["from_cache"], told["too_long"]) == (1, 0, 2)
