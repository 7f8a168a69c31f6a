"""A message of Helix' own as it lies in the queue."""

from __future__ import annotations

import base64
import json
from typing import Any

from helix_jobs.broker.publisher import QueueNames


def encode(body: object) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


QUEUE = QueueNames("one").queue
MESSAGE: dict[str, Any] = {
    "body": encode([[7], {}, {}]),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"lang": "py", "task": "helix.run_job", "id": "7-ab", "root_id": "7-ab", "ignore_result": True},
    "properties": {
        "correlation_id": "7-ab",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "priority": 9,
        "body_encoding": "base64",
        "delivery_tag": "a-tag",
    },
}
