"""Lines of requests, read by the rules a submission reads them by."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob

if TYPE_CHECKING:
    from helix_jobs.errors import BadLine

GREEDY = SamplingParams()
BATCH = "b-20260101-abcdef"


def read(data: bytes, defaults: SamplingParams = GREEDY, rejects: io.BytesIO | None = None):
    items = list(LineReader(defaults, rejects=rejects).read(io.BytesIO(data)))
    for item in items:
        if isinstance(item, NewJob):
            item.seed_from(BATCH)
    return items


def read_one(data: bytes | dict, defaults: SamplingParams = GREEDY) -> NewJob | BadLine:
    (item,) = read(data if isinstance(data, bytes) else json.dumps(data).encode(), defaults)
    return item
