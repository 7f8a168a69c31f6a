"""A process that sends short requests through a tiny engine and prints what its memory gained, as JSON.

The argument is how many requests. After them come as many as ``CONTROL`` of which nobody is told that they have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import random
import sys
from functools import partial

import psutil

from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.speculation.drafters.lookup import LookupDrafter
from helix_jobs.engine.speculation.drafters.registry import FINDING
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, tiny_engine, tiny_model

WAITING = 48
CONTROL = 1800


def trimmed_memory():
    """Resident bytes and live objects, after what is free has been given back as far as the allocator can."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss, len(gc.get_objects())


def requests():
    """Greedy and sampled, with and without stop strings, a third of them with a common beginning."""
    rng = random.Random(1)
    system = [rng.randrange(1, VOCAB_SIZE) for _ in range(12)]
    for number in itertools.count():
        own = [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(1, 16))]
        kind = [{}, {"temperature": 1.0}, {"temperature": 0.7, "seed": number}, {"stop": ("ab", "c.")}][number % 4]
        yield Request(
            request_id=str(number),
            prompt_token_ids=tuple(own if number % 3 else system + own),
            seed=number,
            sampling_params=SamplingParams(max_tokens=rng.randrange(1, 9), **kind),
        )


def serve(engine, arriving, count):
    """Run ``count`` requests through, a queue always waiting; every ninth is aborted on its way."""
    ended = 0
    while ended < count:
        batch = list(itertools.islice(arriving, min(WAITING, count - ended)))
        for one in batch:
            engine.add_request(engine.encode(one))
        while engine.has_unfinished():
            ended += len(engine.step())
            for one in batch[::9]:
                engine.abort(one.request_id)
    engine.check_integrity()
    assert ended == count


def gained_over(engine, arriving, count):
    """What ``count`` requests leave behind."""
    bytes_before, objects_before = trimmed_memory()
    serve(engine, arriving, count)
    bytes_after, objects_after = trimmed_memory()
    return {"bytes": bytes_after - bytes_before, "objects": objects_after - objects_before}


def main(num_requests):
    """Compare memory after the first tenth of the requests and after the last; then see a leak, as the control."""
    # Of what is bounded in Python, only these finished outputs would take more than a tenth to reach their bound.
    FINDING["lookup"] = partial(LookupDrafter, max_corpus_tokens=1024)
    drafters = {"adaptive": True, "drafters": ["lookup"]}
    engine = tiny_engine(tiny_model(seed=3), "int8", num_blocks=120, max_batch_size=16, **drafters)
    arriving = requests()
    serve(engine, arriving, num_requests // 10)
    sound = gained_over(engine, arriving, num_requests - num_requests // 10)
    assert engine.counters().draft_tokens > 0
    opened(engine).speculator.forget = lambda _: None
    leaking = gained_over(engine, arriving, CONTROL)
    sys.stdout.write(json.dumps({"sound": sound, "leaking": leaking}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
