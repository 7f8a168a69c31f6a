"""Read made-up lines, stored requests and messages; arguments: FIRST-SEED COUNT.

Whatever is in them, they are taken or refused as the tests beside this file say. Ends with a traceback and the smallest
example at the first that is neither; the line before it names its seed.
"""

# ruff: noqa: T201  (its lines are read by whoever looks for the seed)
from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from helix_jobs.broker.celery.remote_control import is_command
from helix_jobs.broker.messages import MAX_JOB_ID, job_id_of_message
from helix_jobs.errors import InvalidRequestError
from helix_jobs.intake.stored_requests import to_engine_request
from tests.unit.broker.queued_message import MESSAGE, QUEUE
from tests.unit.intake.made_up_values import json_values, objects
from tests.unit.intake.misplaced_values import misplaced
from tests.unit.intake.reader_invariants import check_invariants

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = 300
GOOD_MESSAGE = json.dumps(MESSAGE).encode()
LINES = st.lists(objects | json_values | misplaced, min_size=1, max_size=4).map(
    lambda values: [json.dumps(value) for value in values]
)
DAMAGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 9), st.binary(max_size=5)), max_size=4)


def damage(text: bytes, damages: list[tuple[int, int, bytes]]) -> bytes:
    """Replace some bytes at some places."""
    for place, width, new in damages:
        at = place % (len(text) + 1)
        text = text[:at] + new + text[at + width :]
    return text


def read_stored(value: object) -> None:
    with suppress(InvalidRequestError):
        to_engine_request(1, value)


def vet(text: bytes) -> None:
    """As the transport does with what it has popped or heard."""
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    job_id = job_id_of_message(raw, QUEUE)
    assert job_id is None or 1 <= job_id <= MAX_JOB_ID
    assert is_command(raw, QUEUE, {"ping"}) in (True, False)


FUZZERS: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    (st.binary(max_size=2_000), check_invariants),
    (st.tuples(LINES, DAMAGES).map(lambda made: damage("\n".join(made[0]).encode(), made[1])), check_invariants),
    (json_values | objects | misplaced, read_stored),
    (DAMAGES.map(lambda damages: damage(GOOD_MESSAGE, damages)), vet),
    ((json_values | objects).map(lambda value: json.dumps(value).encode()), vet),
)


def run(first: int, count: int) -> None:
    for number in range(first, first + count):
        strategy, check = FUZZERS[number % len(FUZZERS)]
        print(f"seed {number}: {check.__name__}", flush=True)
        config = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(config(given(strategy)(check)))()
    print(f"{count * EXAMPLES} lines, stored requests and messages: each taken or refused")


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
