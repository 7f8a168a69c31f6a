"""The process that judges answers by rules with a schema or a regular expression: both are strangers' patterns.

``AnswerJudge`` runs ``python -m helix_jobs.worker.judge_process``. It reads one JSON object a line from standard input,
the setup first, and answers each with one line. ``bounded_child`` sets its limits.
"""

from __future__ import annotations

import json
from typing import Any

from helix_jobs.acceptance.judge import Answer, judge
from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.engine.text.bounded_child import begin, bound_memory, bound_time, send


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Judge one answer.

    Args:
        request: ``rule``, ``answer`` and ``own_schema``, as ``judge`` takes them.

    Returns:
        ``reason``: why it is refused; None if it is accepted.
    """
    rule = AcceptanceRule.from_mapping(request["rule"])
    try:
        return {"reason": judge(rule, Answer(**request["answer"]), request["own_schema"])}
    except MemoryError:
        return {"reason": "its rule needs too much memory to look at it"}


def main() -> None:
    """Answer until standard input ends."""
    setup, requests, answers = begin()
    bound_time(0)
    bound_memory(setup["memory_bytes"])
    send(answers, {})
    for line in requests:
        request = json.loads(line)
        bound_time(request["seconds"])
        send(answers, answer(request))
        bound_time(0)


if __name__ == "__main__":
    main()
