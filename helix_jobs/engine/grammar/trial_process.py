"""The process in which a constraint is compiled for the first time: a stranger's schema may take for ever.

``GrammarTrial`` runs ``python -m helix_jobs.engine.grammar.trial_process``. It reads one JSON object a line from
standard input, the setup first, and answers each with one line. It compiles the constraint for the model's vocabulary
and computes the first mask, which is where most of the work is. ``bounded_child`` sets its limits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar.llguidance_grammar import compile_grammar
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.text.bounded_child import begin, bound_memory, bound_time, send
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def fault_of(values: dict[str, Any], tokenizer: LLTokenizer) -> str:
    """What is wrong with a constraint, as a sentence; empty for nothing.

    Args:
        values: ``Constraint.to_dict``.
        tokenizer: The model's vocabulary.
    """
    try:
        with panics_as_errors():
            grammar = compile_grammar(Constraint.from_mapping(values), tokenizer)
            matcher = grammar.matcher()
            matcher.forced()
            mask = np.zeros(grammar.mask_bytes, dtype=np.uint8)
            matcher.fill_mask(mask)
        if not mask.any() and not matcher.is_accepting:
            return "no answer can satisfy the constraint; correct it"
    except RequestError as error:
        return str(error)
    except MemoryError:
        return "the constraint needs too much memory to be compiled; simplify it"
    except Exception as error:  # noqa: BLE001  (a library's errors may quote the text: its kind alone)
        return f"the constraint cannot be compiled ({type(error).__name__}); simplify it"
    return ""


def main() -> None:
    """Answer until standard input ends."""
    setup, requests, answers = begin()
    tokenizer = TokenTable.from_json(setup["table"]).build()
    bound_time(0)
    bound_memory(setup["own_memory_bytes"])
    send(answers, {})
    for line in requests:
        request = json.loads(line)
        bound_time(request["seconds"])
        send(answers, {"fault": fault_of(request["constraint"], tokenizer)})
        bound_time(0)


if __name__ == "__main__":
    main()
