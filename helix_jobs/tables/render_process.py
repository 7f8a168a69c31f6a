"""The process that fills templates in: a template is a program, and may be a stranger's.

``RowRenderer`` runs ``python -m helix_jobs.tables.render_process``. It reads one JSON object a line from standard
input, the setup first, and answers each with one line. ``bounded_child`` sets its limits of time and memory.
"""

from __future__ import annotations

import json
from typing import Any, Final

import jinja2

from helix_jobs.engine.text.bounded_child import begin, bound_memory, bound_time, send
from helix_jobs.tables.row_template import RowRefusedError, RowTemplate

# Characters of lines after which an answer ends: a group of rows may ask for a thousand times as many, and whoever
# submits holds a whole answer.
MAX_ANSWER_CHARS: Final = 16 * 1024 * 1024


def answers_to(template: RowTemplate, request: dict[str, Any]) -> list[Any]:
    """What becomes of the rows of a request: of all, or of the first ones where their lines are long.

    Args:
        template: The templates.
        request: ``rows``, and ``what``: ``keep`` asks whether each row counts, ``fill`` for its line as JSON text.

    Returns:
        For each of these rows a boolean, a text, or a list of field, reason and remedy. Whoever asks asks again for the
        rest.
    """
    found: list[Any] = []
    room = MAX_ANSWER_CHARS
    for values in request["rows"]:
        try:
            if request["what"] == "keep":
                found.append(template.keeps(values))
            else:
                found.append(line := json.dumps(template.filled(values)))
                room -= len(line)
        except RowRefusedError as error:
            found.append([error.field, error.reason, error.remedy])
        if room <= 0:
            break
    return found


def main() -> None:
    """Answer until standard input ends."""
    setup, requests, answers = begin()
    try:
        template = RowTemplate(setup["where"], setup["texts"])
    except jinja2.TemplateSyntaxError as error:
        send(answers, {"fault": f"line {error.lineno}: {error.message}"})
        return
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        send(answers, {"fault": f"it cannot be compiled ({type(error).__name__})"})
        return
    bound_time(0)
    bound_memory(setup["memory_bytes"])
    send(answers, {"fault": ""})
    for line in requests:
        request = json.loads(line)
        bound_time(request["seconds"])
        send(answers, {"rows": answers_to(template, request)})
        bound_time(0)


if __name__ == "__main__":
    main()
