"""Lines of requests, read by the rules a submission reads them by."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.intake.lines import JobRequest, read_lines

if TYPE_CHECKING:
    from helix_jobs.errors import BadLine

GREEDY = SamplingParams()
BATCH = "b-20260101-abcdef"


def read(data: bytes, defaults: SamplingParams = GREEDY, rejects: io.BytesIO | None = None):
    return list(read_lines(io.BytesIO(data), defaults, batch_id=BATCH, rejects=rejects))


def read_one(data: bytes | dict) -> JobRequest | BadLine:
    (item,) = read(data if isinstance(data, bytes) else json.dumps(data).encode())
    return item
